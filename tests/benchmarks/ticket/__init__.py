"""Tests of the ticket experiment."""
