"""The door for masks: whatever the user brings becomes bool tensors, True = kept, keyed by parameter name."""

from fxprune.masks.load import load_masks, open_masks, save_masks
from fxprune.masks.resolve import kept_weight_shares, resolve_masks

__all__ = ["kept_weight_shares", "load_masks", "open_masks", "resolve_masks", "save_masks"]
