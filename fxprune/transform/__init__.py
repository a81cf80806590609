"""Masks in, masks out: refill and regroup for people who retrain in between."""

from fxprune.transform.change import ChangedMasks, MaskChange
from fxprune.transform.refill import refill
from fxprune.transform.regroup import regroup

__all__ = ["ChangedMasks", "MaskChange", "refill", "regroup"]
