"""Masks in, masks out: refill and regroup for people who retrain in between."""

from fxprune.transform.change import ChangedMasks, MaskChange
from fxprune.transform.coupling import find_coupled
from fxprune.transform.refill import refill
from fxprune.transform.regroup import regroup
from fxprune.transform.saliency import saliency

__all__ = ["ChangedMasks", "MaskChange", "find_coupled", "refill", "regroup", "saliency"]
