"""Operators that move elements: views, permutations, pieces. One probe with numbered elements serves all."""

from __future__ import annotations

import operator
from typing import cast

import numpy as np
import torch
from torch import fx
from torch.fx.node import Argument, map_arg

from fxprune.channels.adapt import select
from fxprune.channels.facts import Cells, Facts, Kind
from fxprune.channels.grid import (
    IntArray,
    Shape,
    all_cells,
    box_sizes,
    cells_of_elements,
    compress,
    gather,
    spread,
)
from fxprune.channels.rewriter import Rewriter
from fxprune.channels.rules.base import Rule, is_constant, pin_inputs, set_opaque
from fxprune.channels.spatial import SpatialMap
from fxprune.layer import find_layer
from fxprune.nodes import bind, get_tensor

_aten = torch.ops.aten
_SIZED = frozenset({_aten.view.default, _aten._unsafe_view.default, _aten.reshape.default})
VIEWS = _SIZED | {_aten.permute.default, _aten.transpose.int, _aten.clone.default, _aten.unsqueeze.default}
"""Steps of a channel shuffle that is written out."""


def probe(node: fx.Node, elements: IntArray, args: tuple[Argument, ...]) -> list[IntArray]:
    """Run an operator on numbered elements.

    Args:
        node: The node.
        elements: Numbers, in the shape of the input.
        args: The other arguments.

    Returns:
        The numbers in the shape of each result.
    """
    assert callable(node.target)
    result = node.target(torch.from_numpy(np.ascontiguousarray(elements)), *args, **node.kwargs)
    results = [result] if isinstance(result, torch.Tensor) else list(result)
    return [np.asarray(item.numpy()) for item in results]


def number(shape: Shape) -> IntArray:
    """Return the elements of a tensor, numbered."""
    return np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.int64).reshape(shape)


def moved_ids(cells: Cells, elements: IntArray, facts: Facts) -> IntArray:
    """Return the ids of a result whose elements have these numbers in the source."""
    full = np.broadcast_to(cells.ids, cells.shape).reshape(-1)[elements]
    return forget_maps(compress(full), facts)


def forget_maps(ids: IntArray, facts: Facts) -> IntArray:
    """Replace ids that differ over space by new ones of which nothing is known: their plane has moved."""
    mapped = np.asarray(facts.kind[ids] == Kind.MAP)
    if not bool(mapped.any()):
        return ids
    unique, inverse = np.unique(ids[mapped], return_inverse=True)
    fresh = facts.new_ids(unique.shape)
    facts.tie(fresh, unique)
    ids = ids.copy()
    ids[mapped] = fresh[inverse.reshape(-1)]
    facts.moved.append((unique, fresh))
    return ids


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
        if node.target in _SIZED:
            facts.boxes[node] = facts.of(node).ids
        _find_shuffle(node, elements, facts)

    def backward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """The ids are the same; use of new ones goes back to the old."""
        pass_moved(facts)

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
        if source.target not in VIEWS or len(source.users) > 1 or source.args[0] not in facts.cells:
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
    if node.target not in _SIZED:
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


def drop_or_fill(node: fx.Node, rewriter: Rewriter) -> None:
    """Let go of a result of which nothing varies; build it from constants if something is still asked of it."""
    if rewriter.suffices(node, np.empty(0, dtype=np.int64)):
        rewriter.drop(node)
    else:
        rewriter.copy_full(node)


def pass_moved(facts: Facts) -> None:
    """Pass use from ids that replaced moved maps to the maps."""
    for old, new in facts.moved:
        facts.use(old, facts.used[new])


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
        """The ids are the same; use of new ones goes back to the old."""
        if not _is_injective(gm, node):
            pin_inputs(node, facts)
        pass_moved(facts)

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
