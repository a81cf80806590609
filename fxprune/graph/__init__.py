"""The graph: capture a model, annotate it with masks, keep it tidy; in the order in which `compile` uses them."""

from fxprune.graph.annotate import annotate, read_masks
from fxprune.graph.capture import Captured, capture
from fxprune.graph.door import check_ready
from fxprune.graph.shapes import propagate_shapes, tidy
from fxprune.nodes import annotation_of, copy_meta, get_tensor, set_tensor

__all__ = [
    "Captured",
    "annotate",
    "annotation_of",
    "capture",
    "check_ready",
    "copy_meta",
    "get_tensor",
    "propagate_shapes",
    "read_masks",
    "set_tensor",
    "tidy",
]
