"""Measured times that outlive the process: where they lie, and what they are measured for."""
