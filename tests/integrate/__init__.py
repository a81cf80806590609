"""Tests of fxprune.integrate."""
