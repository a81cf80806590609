"""Tests of fxprune; the folders mirror those of the package."""
