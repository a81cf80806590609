"""Kernels for NVIDIA GPUs: generated and compiled without one, run through the driver alone."""
