"""Tests of `fxprune.lowering`."""
