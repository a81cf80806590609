"""Checkpoints of a network and of its small model: from one to the other by the record of channels."""

from fxprune.checkpoint.expand import expand_state
from fxprune.checkpoint.shrink import shrink_state

__all__ = ["expand_state", "shrink_state"]
