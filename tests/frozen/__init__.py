"""Tests of `fxprune.frozen`."""
