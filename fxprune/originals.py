"""Every layer as the user's model has it, so that the report of a model without its dead channels counts from there."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from fxprune.layer import find_layer
from fxprune.nodes import annotation_of, module_path
from fxprune.report import LayerReport


@dataclass(frozen=True)
class OriginalLayer:
    """One layer before any pass.

    Attributes:
        name: Module path.
        parameter: Name of its weight.
        operator: What it computes.
        weight_shape: Sizes of the weight.
        output_shape: Sizes of the output.
        macs: Multiply-adds.
        size_bytes: Bytes of the weight.
    """

    name: str
    parameter: str
    operator: str
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    macs: int
    size_bytes: int


def find_originals(gm: fx.GraphModule) -> tuple[OriginalLayer, ...]:
    """Return the layers of an annotated graph in order."""
    found = []
    for node in gm.graph.nodes:
        layer, annotation = find_layer(node), annotation_of(node)
        if layer is not None and annotation is not None:
            size = math.prod(layer.weight_shape) * layer.weight.meta["val"].element_size()
            name = module_path(node)
            shapes = layer.weight_shape, layer.output_shape
            found.append(OriginalLayer(name, annotation.name, layer.title, *shapes, layer.macs, size))
    return tuple(found)


def count_from_originals(
    layers: Sequence[LayerReport], originals: Sequence[OriginalLayer], kept_weight: Mapping[str, float]
) -> tuple[LayerReport, ...]:
    """Return the layers of a report with dense counts and shares of the original layers; those that went come last.

    A layer that became several, as a packed projection does, has its original counts in the first of them.

    Args:
        layers: The layers as they run.
        originals: The layers of the user's model.
        kept_weight: Share of |w| that the mask keeps, by parameter name.
    """
    waiting: defaultdict[str, list[OriginalLayer]] = defaultdict(list)
    for original in originals:
        waiting[original.name].append(original)
    counted = []
    for layer in layers:
        found = waiting[layer.name]
        counted.append(_count(layer, found.pop(0)) if found else _count_nothing(layer))
    gone = [_describe_gone(one, kept_weight) for left in waiting.values() for one in left]
    return (*counted, *gone)


def _count(layer: LayerReport, original: OriginalLayer) -> LayerReport:
    """Measure a layer that was cut against the original one."""
    if layer.weight_shape == original.weight_shape:
        return layer
    share = math.prod(layer.weight_shape) / max(1, math.prod(original.weight_shape))
    was, now = ("x".join(map(str, shape)) for shape in (original.weight_shape, layer.weight_shape))
    return replace(
        layer,
        weight_shape=original.weight_shape,
        output_shape=original.output_shape,
        macs_dense=original.macs,
        dense_size_bytes=original.size_bytes,
        density=layer.density * share,
        stored_density=layer.stored_density * share,
        reason=f"{layer.reason}; cut from {was} to {now}",
    )


def _count_nothing(layer: LayerReport) -> LayerReport:
    """Count a further part of a layer as no weights of the model."""
    return replace(layer, weight_shape=(0,), macs_dense=0, dense_size_bytes=0)


def _describe_gone(original: OriginalLayer, kept_weight: Mapping[str, float]) -> LayerReport:
    return LayerReport(
        name=original.name,
        operator=original.operator,
        weight_shape=original.weight_shape,
        output_shape=original.output_shape,
        macs_dense=original.macs,
        macs_kept=0,
        macs_run=0,
        density=0.0,
        stored_density=0.0,
        heights={},
        kept_weight=kept_weight.get(original.parameter, 1.0),
        kernel="none: removed",
        predicted_us=None,
        measured_us=None,
        dense_us=None,
        reason="no channel of it both varies and is used",
        parameters=0,
        size_bytes=0,
        dense_size_bytes=original.size_bytes,
    )
