"""Code generation: packing, kernels, schedules, building and running. The only package that imports tvm."""
