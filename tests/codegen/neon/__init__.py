"""Kernels for aarch64, run by an emulator of its processors."""
