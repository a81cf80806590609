"""Every convolution of a model by itself: its useful rate beside what this machine can do, and what limits it."""
