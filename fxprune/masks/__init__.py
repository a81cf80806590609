"""The door for masks: whatever the user brings becomes bool tensors, True = kept, keyed by parameter name."""

from fxprune.masks.resolve import resolve_masks

__all__ = ["resolve_masks"]
