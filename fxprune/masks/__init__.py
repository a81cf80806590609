"""The door for masks: whatever the user brings becomes bool tensors, True = kept, keyed by parameter name."""

from fxprune.masks.resolve import kept_weight_shares, resolve_masks

__all__ = ["kept_weight_shares", "resolve_masks"]
