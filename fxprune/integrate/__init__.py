"""Compiled models outside the process that compiled them."""

from fxprune.integrate.artifact import load

__all__ = ["load"]
