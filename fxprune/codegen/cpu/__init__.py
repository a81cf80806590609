"""Kernels for CPUs: rows as lanes (`rows`) and pixels as lanes (`pixels`)."""
