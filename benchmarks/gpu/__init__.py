"""Layers and models on a GPU: fxprune's kernels beside torch's dense ones of the same type, timed by CUDA events."""
