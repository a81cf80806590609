"""Tests of `fxprune.graph`."""
