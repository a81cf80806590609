"""The door for masks: whatever the user brings becomes bool tensors, True = kept, keyed by parameter name."""

from fxprune.masks.load import load_masks, open_masks, save_masks
from fxprune.masks.packed import PackedMasks, pack_bits, unpack_bits
from fxprune.masks.resolve import kept_weight_shares, resolve_masks

__all__ = [
    "PackedMasks",
    "kept_weight_shares",
    "load_masks",
    "open_masks",
    "pack_bits",
    "resolve_masks",
    "save_masks",
    "unpack_bits",
]
