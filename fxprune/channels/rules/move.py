"""Operators that move all elements: views, permutations, channel shuffles."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import fx
from torch.fx.node import Argument

from fxprune.channels.facts import Cells, Facts, Kind
from fxprune.channels.grid import IntArray, Shape, box_sizes, cells_of_elements, compress, gather, spread
from fxprune.channels.rewriter import Rewriter
from fxprune.channels.rules.base import Rule
from fxprune.channels.rules.probe import drop_or_fill, moved_ids, number, probe
from fxprune.channels.spatial import SpatialMap
from fxprune.layer import find_layer
from fxprune.nodes import VIEWS

_aten = torch.ops.aten
_STEPS = VIEWS | {_aten.permute.default, _aten.transpose.int, _aten.clone.default, _aten.unsqueeze.default}
"""Steps of a channel shuffle that is written out."""


class MoveRule(Rule):
    """Every element of the input goes to one place of the result: view, permute, transpose, squeeze, clone, shuffle."""

    def forward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Take the ids along; see whether this is the end of a channel shuffle."""
        cells = facts.of(cast("fx.Node", node.args[0]))
        (elements,) = probe(node, number(cells.shape), node.args[1:])
        shape = tuple(elements.shape)
        if is_flatten(shape, cells):
            facts.cells[node] = Cells(shape, flatten_maps(cells, facts))
            return
        facts.cells[node] = Cells(shape, moved_ids(cells, elements, facts))
        if is_image(node) and not set(facts.of(node).axes) <= {1}:
            facts.cells[node] = Cells(shape, one_id_a_channel(facts.of(node), facts))
        if node.target in VIEWS:
            facts.boxes[node] = facts.of(node).ids
        _find_shuffle(node, elements, facts)

    def backward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """The ids are the same, or stand for moved ones: nothing to pass on."""

    def rewrite(self, node: fx.Node, rewriter: Rewriter) -> None:
        """Rewrite literal sizes; check the result's order by a second probe."""
        facts = rewriter.facts
        shuffled = node in facts.shuffles
        source = facts.shuffles[node][0] if shuffled else cast("fx.Node", node.args[0])
        held = rewriter.held(source)
        if held is None:
            drop_or_fill(node, rewriter)
            return
        if rewriter.is_whole(source):
            rewriter.copy_full(node)
            return
        cells, result = facts.of(source), facts.of(node)
        before = spread(held, cells.shape, cells.grid)
        places = facts.shuffles[node][1] if shuffled else probe(node, number(cells.shape), node.args[1:])[0]
        back = np.empty(places.size, dtype=np.int64)
        back[places.reshape(-1)] = np.arange(places.size)
        if shuffled:  # the tensor stays as it is, its channels answer to other numbers
            arrangement = gather(back[before], result.shape, result.grid)
            assert arrangement is not None
            rewriter.put(node, rewriter.made_node(source), arrangement)
            return
        args = _fit_sizes(node, back[before.reshape(-1)], result)
        found = None if args is None else _try(node, back[before], args, result)
        if args is None or found is None or not rewriter.suffices(node, found):
            rewriter.copy_full(node)
            return
        rewriter.put(node, rewriter.emit(node.target, (rewriter.made_node(source), *args), node, node.kwargs), found)


def is_flatten(shape: Shape, cells: Cells) -> bool:
    """Return whether a result is [N, C * H * W] of a source [N, C, H, W] with ids on its channels."""
    plane = int(np.prod(cells.shape[2:], dtype=np.int64))
    return len(cells.shape) > 2 and cells.axes == (1,) and shape == (cells.shape[0], cells.shape[1] * plane)


def flatten_maps(cells: Cells, facts: Facts) -> IntArray:
    """Return the ids of a flattened image, [1, C * H * W]: each position of a known map is a constant of its own."""
    plane = int(np.prod(cells.shape[2:], dtype=np.int64))
    ids = np.repeat(cells.ids.reshape(-1), plane).reshape(-1, plane)
    for row in ids:
        if facts.kind[row[0]] == Kind.MAP:
            fresh = facts.new_ids((plane,))
            facts.set_constants(fresh, facts.maps[int(row[0])].full().reshape(-1))
            facts.tie(fresh, row)
            row[:] = fresh
    return ids.reshape(1, -1)


def is_image(node: fx.Node) -> bool:
    """Return whether convolutions read a result."""
    layers = [layer for layer in map(find_layer, node.users) if layer is not None]
    return any(layer.kind != "linear" and layer.input is node for layer in layers)


def one_id_a_channel(cells: Cells, facts: Facts) -> IntArray:
    """Return one id for each index of axis 1 of an image; it stays with all ids that it stands for.

    Constants make a map: the channel is known, if not the same everywhere.
    """
    count, sizes = cells.shape[1], cells.shape[2:]
    lines = np.moveaxis(np.broadcast_to(cells.ids, (cells.grid[0], *cells.shape[1:])), 1, 0).reshape(count, -1)
    fresh = facts.new_ids((count,))
    known = np.asarray((facts.kind[lines] == Kind.CONST).all(axis=1))
    if cells.grid[0] == 1:
        classes = tuple(np.arange(size, dtype=np.int64) for size in sizes)
        facts.set_maps(fresh[known], SpatialMap(classes, facts.value[lines[known]].reshape(int(known.sum()), *sizes)))
    shared = np.broadcast_to(fresh[:, None], lines.shape)
    facts.tie(shared, lines)
    facts.moved.append((lines, shared))
    return fresh.reshape([-1 if axis == 1 else 1 for axis in range(len(cells.shape))])


def _find_shuffle(node: fx.Node, elements: IntArray, facts: Facts) -> None:
    """Note that a node ends a chain of views that does nothing but permute the channels of one tensor.

    The channels then need not move at all, and the views in between need no box. Known maps stay known.
    """
    chain, source = [node], cast("fx.Node", node.args[0])
    shape, axes = facts.of(node).shape, facts.of(node).axes
    while True:
        cells = facts.of(source)
        if cells.shape == shape and len(axes) == 1 and cells.axes == axes:
            back = np.empty(elements.size, dtype=np.int64)
            back[elements.reshape(-1)] = np.arange(elements.size)
            if gather(back.reshape(shape), shape, cells.grid) is not None:
                break
        if source.target not in _STEPS or len(source.users) > 1 or source.args[0] not in facts.cells:
            return
        chain.append(source)
        before = cast("fx.Node", source.args[0])
        (earlier,) = probe(source, number(facts.of(before).shape), source.args[1:])
        elements, source = earlier.reshape(-1)[elements], before
    facts.shuffles[node] = (source, elements)
    facts.cells[node] = Cells(shape, compress(np.broadcast_to(cells.ids, shape).reshape(-1)[elements]))
    for view in chain:
        facts.boxes.pop(view, None)


def _fit_sizes(node: fx.Node, present: IntArray, result: Cells) -> tuple[Argument, ...] | None:
    """Return the arguments after the first, with the sizes of what is present; None if it fills no box."""
    if node.target not in VIEWS:
        return node.args[1:]
    kept = np.zeros(int(np.prod(result.shape, dtype=np.int64)), dtype=bool)
    kept[present] = True
    owners = cells_of_elements(result.shape, result.grid)
    on = np.zeros(result.ids.size, dtype=bool)
    on[owners[kept]] = True
    sizes = box_sizes(on.reshape(result.grid))
    full = [sizes[axis] if result.grid[axis] > 1 else size for axis, size in enumerate(result.shape)]
    return (full,) if int(np.prod(full)) == present.size else None


def _try(node: fx.Node, elements: IntArray, args: tuple[Argument, ...], result: Cells) -> IntArray | None:
    """Return the arrangement of the result for cut elements, or None if it has none."""
    try:
        (moved,) = probe(node, elements, args)
    except RuntimeError:  # the literal sizes do not fit
        return None
    return gather(moved, result.shape, result.grid)
