"""Tests of the CUDA kernels; none of them needs a GPU."""
