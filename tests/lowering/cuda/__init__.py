"""Programs for a GPU, run on the twins of their kernels."""
