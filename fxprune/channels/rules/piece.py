"""Operators that take parts of one axis: slice, select, and the items of split, chunk, unbind."""

from __future__ import annotations

import operator
from typing import cast

import numpy as np
import torch
from torch import fx
from torch.fx.node import Argument, map_arg

from fxprune.channels.adapt import select
from fxprune.channels.facts import Cells, Facts
from fxprune.channels.grid import Shape, all_cells, gather, spread
from fxprune.channels.rewriter import Rewriter
from fxprune.channels.rules.base import Rule, is_constant, pin_inputs, set_opaque
from fxprune.channels.rules.probe import moved_ids, number, probe
from fxprune.nodes import bind, get_tensor

_aten = torch.ops.aten
SPLITS = frozenset(
    {
        _aten.split.Tensor,
        _aten.split_with_sizes.default,
        _aten.chunk.default,
        _aten.unbind.int,
        _aten.tensor_split.sections,
        _aten.tensor_split.indices,
    }
)
"""Operators that part an axis into several tensors."""

PIECES = frozenset({_aten.slice.Tensor, _aten.select.int, _aten.index_select.default})
"""Operators that take one part of an axis."""


class PieceRule(Rule):
    """A part of one axis: slice, select, index_select with constant indices, and the items of split, chunk, unbind."""

    def forward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Take the ids of the part along."""
        if not _is_injective(gm, node):
            set_opaque(node, facts)
            return
        cells = facts.of(cast("fx.Node", node.args[0]))
        pieces = probe(node, number(cells.shape), known_arguments(gm, node))
        made = [Cells(tuple(piece.shape), moved_ids(cells, piece, facts)) for piece in pieces]
        single = isinstance(node.meta["val"], torch.Tensor)
        facts.cells[node] = made[0] if single else made

    def backward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """The ids are the same, or stand for moved ones."""
        if not _is_injective(gm, node):
            pin_inputs(node, facts)

    def rewrite(self, node: fx.Node, rewriter: Rewriter) -> None:
        """Emit each piece as a part of what is left of the axis."""
        source = cast("fx.Node", node.args[0])
        if rewriter.is_whole(source) or not _is_injective(rewriter.gm, node):
            rewriter.copy_full(node)
            return
        if isinstance(node.meta["val"], torch.Tensor):
            cut_piece(node, node, 0, rewriter)
            return
        for user in node.users:
            assert user.target is operator.getitem
        rewriter.put_items(node, None, [None] * len(node.meta["val"]))


def _is_injective(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether a node takes every element at most once; indices may be repeated, or not known."""
    if node.target is not _aten.index_select.default:
        return True
    index = node.args[2]
    if not is_constant(index):
        return False
    values = get_tensor(gm, cast("fx.Node", index)).cpu().numpy()
    return int(np.unique(values).size) == values.size


class ItemRule(Rule):
    """One item of an operator that returns several tensors."""

    def forward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Take over the ids."""
        source, index = cast("tuple[fx.Node, int]", node.args)
        made = facts.cells[source]
        facts.cells[node] = made if isinstance(made, Cells) else made[index]

    def backward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """The ids are the same: nothing to pass on."""

    def rewrite(self, node: fx.Node, rewriter: Rewriter) -> None:
        """Take the item of the cut operator; an item of a split is cut by itself."""
        source, index = cast("tuple[fx.Node, int]", node.args)
        if source in rewriter.parts:
            take_part(node, rewriter)
            return
        if rewriter.nodes[source] is None:
            if is_split(source):
                cut_piece(source, node, index, rewriter)
            else:
                rewriter.drop(node)
            return
        held = rewriter.made_items(source)[index]
        assert held is not None
        rewriter.put(node, rewriter.emit(operator.getitem, (rewriter.made_node(source), index), node), held)


def take_part(node: fx.Node, rewriter: Rewriter) -> None:
    """Let a result that is a node of its own stand for the item."""
    source, index = cast("tuple[fx.Node, int]", node.args)
    part, held = rewriter.parts[source][index], rewriter.made_items(source)[index]
    if part is None or held is None:
        rewriter.drop(node)
    else:
        rewriter.put(node, part, held)


def is_split(node: fx.Node) -> bool:
    """Return whether a node splits a tensor into pieces."""
    return node.target in SPLITS


def cut_piece(piece: fx.Node, item: fx.Node, index: int, rewriter: Rewriter) -> None:
    """Emit one piece of a tensor of which only some channels are left.

    Args:
        piece: The node that takes the piece, or splits.
        item: The node whose result is the piece.
        index: Which piece.
        rewriter: The new graph.
    """
    source = cast("fx.Node", piece.args[0])
    held = rewriter.held(source)
    if held is None:
        drop_or_fill_piece(piece, item, index, rewriter)
        return
    cells, result = rewriter.facts.of(source), rewriter.facts.of(item)
    before = spread(held, cells.shape, cells.grid)
    places = probe(piece, number(cells.shape), known_arguments(rewriter.gm, piece))[index]
    axis = _piece_axis(piece, cells.shape)
    back = np.full(int(np.prod(cells.shape, dtype=np.int64)), -1, dtype=np.int64)
    back[places.reshape(-1)] = np.arange(places.size)
    inside = back[before] >= 0
    line = inside.any(axis=tuple(other for other in range(inside.ndim) if other != axis))
    positions = np.flatnonzero(line)
    if positions.size == 0:
        drop_or_fill_piece(piece, item, index, rewriter)
        return
    moved = back[before.take(positions, axis=axis)]
    dropped = result_rank(item) < len(cells.shape)
    moved = moved.squeeze(axis) if dropped and positions.size == 1 else moved
    arrangement = None if bool((moved < 0).any()) else gather(moved, result.shape, result.grid)
    if arrangement is None or not rewriter.suffices(item, arrangement):
        x = rewriter.fetch_full(source)
        emit_whole_piece(piece, item, index, x, rewriter)
        return
    x = rewriter.made_node(source)
    if dropped:
        new = rewriter.emit(_aten.select.int, (x, axis, int(positions[0])), item)
    else:
        new = select(rewriter, item, x, axis, positions.astype(np.int64), line.size)
    rewriter.put(item, new, arrangement)


def result_rank(node: fx.Node) -> int:
    """Return the rank of a node's tensor."""
    return int(node.meta["val"].ndim)


def known_arguments(gm: fx.GraphModule, node: fx.Node) -> tuple[Argument, ...]:
    """Return the arguments after the first, with the tensors of constants."""
    return map_arg(node.args[1:], lambda source: cast("fx.Node", get_tensor(gm, source)))


def emit_whole_piece(piece: fx.Node, item: fx.Node, index: int, x: fx.Node, rewriter: Rewriter) -> None:
    """Emit one piece of a whole tensor."""
    arguments = rewriter.argument(piece.args[1:])
    assert isinstance(arguments, tuple)
    new = rewriter.emit(piece.target, (x, *arguments), piece, piece.kwargs, named=piece is item)
    if piece is not item:
        new = rewriter.emit(operator.getitem, (new, index), item)
    rewriter.put(item, new, all_cells(rewriter.facts.of(item).grid))


def drop_or_fill_piece(piece: fx.Node, item: fx.Node, index: int, rewriter: Rewriter) -> None:
    """Let go of a piece of which nothing varies; build it from constants if something is still asked of it."""
    if rewriter.suffices(item, np.empty(0, dtype=np.int64)):
        rewriter.drop(item)
        return
    emit_whole_piece(piece, item, index, rewriter.fetch_full(cast("fx.Node", piece.args[0])), rewriter)


def _piece_axis(node: fx.Node, shape: Shape) -> int:
    """Return the axis of which a node takes a part."""
    return int(cast("int", bind(node).get("dim", 0))) % len(shape)
