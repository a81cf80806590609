"""Where tensors lie: the layout of every kernel's input and output, and their places in one arena.

A tensor that kernels of the other order read is copied into that order once, for all of them.
A tensor between two row-lane kernels lies channels-last with the halo that its consumers need, and its channels lie in
the order of the producer's blocks if every consumer is such a kernel. Everything that torch reads keeps its channels
in order and is seen by torch as a strided view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import fx

from fxprune.annotation import RowGroupPattern
from fxprune.codegen.memory import rounded
from fxprune.codegen.schedules import block_lanes
from fxprune.codegen.workload import (
    LINE_CELLS,
    NO_HALO,
    NO_WINDOWS,
    ConvShape,
    Halo,
    Layout,
    Windows,
    Workload,
    spread_cells,
)
from fxprune.layer import Layer
from fxprune.lowering.choice import Choice
from fxprune.lowering.flattened import image_of_rows, rows_layout
from fxprune.lowering.geometry import is_depthwise
from fxprune.lowering.norm import Normalisation
from fxprune.lowering.pool import Pooling
from fxprune.lowering.turn import Source, Turned

_MAYBE_ALIAS = frozenset({"reshape", "contiguous", "flatten", "to", "_to_copy", "dropout"})
"""Operators whose result may share memory with their input though their schema does not say so."""


@dataclass(frozen=True)
class Placement:
    """Layouts of one lowered layer.

    Attributes:
        work: The workload with its layouts.
        group_order: Whether the output's channels lie in the order of the blocks.
        source: The buffer that is the input, of a layer or a pool, or its copy; None if torch makes the input.
        staged: Whether torch's input is copied into a buffer with a halo first.
        flattened: Whether the cells of the images in the input's buffer are the rows of a linear layer.
        residual_source: The buffer that is the residual, None if torch makes it or there is none; the output
            overwrites it if `work.in_place` says so.
    """

    work: Workload
    group_order: bool
    source: Source | None
    staged: bool
    flattened: bool
    residual_source: Source | None


def is_private(node: fx.Node, layers: Mapping[fx.Node, Layer], families: Mapping[fx.Node, str]) -> bool:
    """Whether every user of a node is a row-lane layer of the same kind that reads it as its input only.

    A layer that adds a residual is never private: the residual's channels are in order, so its own must be. Nor is one
    next to a depthwise layer, whose channels lie alike in its input and output.
    """
    own = layers[node]
    return (
        own.residual is None
        and not is_depthwise(own)
        and bool(node.users)
        and all(
            families.get(user) == "rows"
            and layers[user].input is node
            and layers[user].residual is not node
            and not is_depthwise(layers[user])
            and _kind(layers[user]) == _kind(own)
            for user in node.users
        )
    )


Order = Literal["nhwc", "nchw"]

Kind = tuple[str, int]
"""Kind and spatial axes of a layer; one of another kind sees its input in another shape."""

POOL_KIND: Kind = ("conv", 2)
TOKENS: Kind = ("linear", 0)


def _kind(layer: Layer) -> Kind:
    return layer.kind, layer.dims


def wanted_halo(
    node: fx.Node,
    kind: Kind,
    layers: Mapping[fx.Node, Layer],
    shapes: Mapping[fx.Node, ConvShape],
    families: Mapping[fx.Node, str],
) -> Halo:
    """Return the largest padding of the row-lane layers that read a node as their input.

    Args:
        node: What they read.
        kind: What its readers have to be.
        layers: Layers of the graph by node.
        shapes: Their geometry.
        families: What runs them.
    """
    wanted = [
        shapes[user].padding
        for user in node.users
        if families.get(user) == "rows" and layers[user].input is node and _kind(layers[user]) == kind
    ]
    axes = [
        (max((halo[axis][0] for halo in wanted), default=0), max((halo[axis][1] for halo in wanted), default=0))
        for axis in range(3)
    ]
    return axes[0], axes[1], axes[2]


def plan_layouts(
    layers: Mapping[fx.Node, Layer],
    shapes: Mapping[fx.Node, ConvShape],
    choices: Mapping[fx.Node, Choice],
    patterns: Mapping[fx.Node, RowGroupPattern],
    pools: Mapping[fx.Node, Pooling],
    norms: Mapping[fx.Node, Normalisation],
    windows: Mapping[fx.Node, Windows],
    threads: int,
) -> tuple[dict[fx.Node, Placement], dict[Source, Layout]]:
    """Choose the layouts of everything that a kernel computes.

    Args:
        layers: Layers of the graph by node, in graph order.
        shapes: Their geometry.
        choices: What runs them.
        patterns: Their row groups.
        pools: Pooling nodes that kernels compute.
        norms: Layer normalisations that kernels compute.
        windows: Pooling that the kernels of layers compute as well.
        threads: Threads of the kernels.

    Returns:
        The placement of every layer, and the layout of every buffer: outputs of layers, pools and norms, and copies.
    """
    families = {node: choices[node].family for node in layers}
    placements: dict[fx.Node, Placement] = {}
    outputs: dict[Source, Layout] = {node: _pool_layout(pool, layers, shapes, families) for node, pool in pools.items()}
    kinds = {node: _kind(layer) for node, layer in layers.items() if families[node] != "dense"}
    kinds |= dict.fromkeys(pools, POOL_KIND) | dict.fromkeys(norms, TOKENS)
    for node, norm in norms.items():
        outputs[node] = norm.layout(spread=any(families.get(user) == "rows" for user in node.users))
    for node, layer in layers.items():
        schedule = choices[node].schedule
        if schedule is None:
            continue
        shape, family = shapes[node], families[node]
        private = family == "rows" and is_private(node, layers, families)
        channels = shape.channels_out
        if private:
            channels = block_lanes(patterns[node], schedule, shape.groups)
        if family == "rows" and any(user in pools or families.get(user) == "rows" for user in node.users):
            channels = spread_cells(channels)
        halo = wanted_halo(node, _kind(layer), layers, shapes, families) if family == "rows" else NO_HALO
        order: Order = "nhwc" if family == "rows" else "nchw"
        pooled = windows.get(node, NO_WINDOWS)
        size = pooled.pooled(shape.spatial_out)
        y = Layout(order, shape.batch, channels, size, halo, spread=family == "pixels")
        source, residual_source = (
            _find_source(other, _kind(layer), order, kinds, outputs) for other in (layer.input, layer.residual)
        )
        for turned in (source, residual_source):
            if isinstance(turned, Turned) and turned not in outputs:
                outputs[turned] = _turned_layout(turned, outputs[turned.node], layers, shapes, families)
        plain = replace(y, channels=shape.channels_out, halo=NO_HALO, spread=False)
        images = image_of_rows(layer, kinds) if family == "rows" else None
        if images is not None:
            source, x, staged = images, rows_layout(outputs[images]), False
        else:
            x, staged = _input_layout(layer, shape, family, source, outputs, layers, shapes, families)
        residual = None
        if layer.residual is not None:
            residual = outputs[residual_source] if residual_source else plain
        work = Workload(shape, x, y, residual, layer.activation, layer.activation_args, threads, windows=pooled)
        placements[node] = Placement(work, private, source, staged, images is not None, residual_source)
        outputs[node] = y
    return placements, outputs


def _find_source(
    node: fx.Node | None,
    kind: Kind,
    order: Order,
    kinds: Mapping[fx.Node, Kind],
    outputs: Mapping[Source, Layout],
) -> Source | None:
    """Return the buffer where a layer finds a node's output: the node's, its copy in the layer's order, or None."""
    if node is None or kinds.get(node) != kind:
        return None
    return node if outputs[node].order == order else Turned(node, kind[1])


def _turned_layout(
    turned: Turned,
    x: Layout,
    layers: Mapping[fx.Node, Layer],
    shapes: Mapping[fx.Node, ConvShape],
    families: Mapping[fx.Node, str],
) -> Layout:
    """Return the layout of a copy: with what its readers need, if it is channels-last."""
    if x.order == "nhwc":
        return Layout("nchw", x.batch, turned.channels, x.spatial, spread=True)
    halo = wanted_halo(turned.node, ("conv", turned.dims), layers, shapes, families)
    return Layout("nhwc", x.batch, spread_cells(turned.channels), x.spatial, halo)


def _pool_layout(
    pool: Pooling,
    layers: Mapping[fx.Node, Layer],
    shapes: Mapping[fx.Node, ConvShape],
    families: Mapping[fx.Node, str],
) -> Layout:
    """Return the layout of a pool's output: with what its readers need, if they are row-lane layers."""
    if pool.order == "nchw":
        return Layout("nchw", pool.batch, pool.channels, pool.spatial_out, spread=True)
    read = any(families.get(user) == "rows" for user in pool.node.users)
    channels = spread_cells(pool.channels) if read else pool.channels
    halo = wanted_halo(pool.node, POOL_KIND, layers, shapes, families)
    return Layout("nhwc", pool.batch, channels, pool.spatial_out, halo)


def _input_layout(
    layer: Layer,
    shape: ConvShape,
    family: str,
    source: Source | None,
    outputs: Mapping[Source, Layout],
    layers: Mapping[fx.Node, Layer],
    shapes: Mapping[fx.Node, ConvShape],
    families: Mapping[fx.Node, str],
) -> tuple[Layout, bool]:
    """Return the layout of a layer's input and whether torch's tensor is copied into it."""
    if source is not None:
        return outputs[source], False
    if family == "pixels":
        copied = layer.kind == "linear"
        return Layout("nchw", shape.batch, shape.channels_in, shape.spatial_in, spread=copied), False
    halo = wanted_halo(layer.input, _kind(layer), layers, shapes, families)
    return Layout("nhwc", shape.batch, shape.channels_in, shape.spatial_in, halo), halo != NO_HALO


@dataclass(frozen=True)
class Interval:
    """When a buffer is alive.

    Attributes:
        cells: float32 cells.
        first: Index of the node that writes it.
        last: Index of the last node that reads it, itself included.
    """

    cells: int
    first: int
    last: int


def plan_memory(intervals: Sequence[Interval]) -> tuple[list[int], int]:
    """Place buffers in one arena, largest first: in the smallest slot that is free while they are alive, or a new one.

    Of slots of one size the one that was in use most recently is taken: its memory is still in the cache.

    All buffers of a slot have the same middle. Threads share the pixels of a layer in order, so with two of them each
    keeps to its own half of a slot; memory that another core has just written costs that core's cache a visit, which
    took half as long again for most layers of ResNet-50 on cores that share no cache.

    Returns:
        The first cell of each buffer, and the arena's cells.
    """
    slots: list[list[int]] = []
    for index in sorted(range(len(intervals)), key=lambda index: (-intervals[index].cells, index)):
        free = [slot for slot in slots if not any(_overlap(intervals[index], intervals[other]) for other in slot)]
        if free:
            least = min(intervals[slot[0]].cells for slot in free)
            smallest = [slot for slot in free if intervals[slot[0]].cells == least]
            min(smallest, key=lambda slot: _idle(intervals[index], [intervals[other] for other in slot])).append(index)
        else:
            slots.append([index])
    places, size = [0] * len(intervals), 0
    for slot in slots:
        largest = rounded(intervals[slot[0]].cells)
        for index in slot:
            places[index] = size + (largest - rounded(intervals[index].cells)) // 2 // LINE_CELLS * LINE_CELLS
        size += largest
    return places, size


def _idle(one: Interval, others: Sequence[Interval]) -> int:
    """Return for how many nodes a slot lies idle before or after one of its buffers, whichever is less."""
    return min(max(other.first - one.last, one.first - other.last) for other in others)


def _overlap(one: Interval, other: Interval) -> bool:
    """Whether two buffers are alive at the same time."""
    return one.first <= other.last and other.first <= one.last


def last_uses(graph: fx.Graph) -> dict[fx.Node, int]:
    """Return the index of the last node that may read each node's memory, views of it included."""
    index = {node: position for position, node in enumerate(graph.nodes)}
    last: dict[fx.Node, int] = {}
    for node in reversed(list(graph.nodes)):
        last[node] = max((last[user] if may_alias(user) else index[user] for user in node.users), default=index[node])
    return last


def may_alias(node: fx.Node) -> bool:
    """Whether a node's result may share memory with an input."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator"
    if any(result.alias_info is not None for result in node.target._schema.returns):
        return True
    return node.target._schema.name.split("::")[-1] in _MAYBE_ALIAS
