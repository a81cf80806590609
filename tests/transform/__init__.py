"""Tests of refill and regroup on models."""
