"""The search for faster kernels: its space, its trials in processes of their own, its progress."""
