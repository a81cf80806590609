"""The networks of Tier B that torchvision lacks."""

from __future__ import annotations

from benchmarks.zoo.block import Block

BLOCKS: dict[str, Block] = {}
"""Name to network."""
