"""Tests of the channel analysis."""
