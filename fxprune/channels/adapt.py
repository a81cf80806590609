"""Bring a cut tensor into another arrangement: leave channels out, put known ones back, reorder."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx

from fxprune.channels.emitter import Emitter
from fxprune.channels.facts import Cells, Kind
from fxprune.channels.grid import IntArray

_aten = torch.ops.aten


def adapt(emitter: Emitter, old: fx.Node, wanted: IntArray) -> fx.Node:
    """Emit a tensor in the wanted arrangement.

    Args:
        emitter: The new graph.
        old: The tensor in the old graph.
        wanted: The cells wanted. Those that are gone come back as their constants, unused ones as 0.

    Returns:
        A node of the new graph.
    """
    cells, held = emitter.facts.of(old), emitter.held(old)
    if held is None:
        return _make_block(emitter, old, cells, wanted)
    axes = cells.axes
    if len(axes) == 1:
        return _adapt_axis(emitter, old, emitter.made_node(old), held, wanted, axes[0])
    return _adapt_axes(emitter, old, held, wanted)


def _adapt_axis(emitter: Emitter, old: fx.Node, x: fx.Node, held: IntArray, wanted: IntArray, axis: int) -> fx.Node:
    """Emit slice, index_select, or cat with the constants that are missing, along one axis."""
    missing = np.setdiff1d(wanted, held)
    order = np.concatenate([held.reshape(-1), missing])
    if missing.size:
        cells = emitter.facts.of(old)
        shape = tuple(-1 if other == axis else 1 for other in range(len(cells.shape)))
        block = _make_block(emitter, old, cells, missing.reshape(shape))
        x = emitter.emit(_aten.cat.default, ([x, block], axis), old, named=False)
    return select(emitter, old, x, axis, find_positions(order, wanted.reshape(-1)), order.size)


def select(emitter: Emitter, old: fx.Node, x: fx.Node, axis: int, positions: IntArray, size: int) -> fx.Node:
    """Emit what takes positions of an axis of length `size`: nothing, a slice, or an index_select."""
    first, count = int(positions[0]), positions.size
    if np.array_equal(positions, np.arange(first, first + count)):
        if count == size:
            return x
        return emitter.emit(_aten.slice.Tensor, (x, axis, first, first + count), old, named=False)
    index = emitter.constant(f"kept_channels.{old.name}", torch.from_numpy(positions), (positions.tobytes(),))
    return emitter.emit(_aten.index_select.default, (x, axis, index), old, named=False)


def find_positions(order: IntArray, wanted: IntArray) -> IntArray:
    """Return where each wanted cell stands in `order`, which holds all of them."""
    ranks = np.argsort(order, kind="stable")
    return np.asarray(ranks[np.searchsorted(order, wanted, sorter=ranks)], dtype=np.int64)


def _adapt_axes(emitter: Emitter, old: fx.Node, held: IntArray, wanted: IntArray) -> fx.Node:
    """Bring the axes that carry ids together, adapt them as one, and take them apart again."""
    cells, x = emitter.facts.of(old), emitter.made_node(old)
    rank, axes = len(cells.shape), cells.axes
    rest = [axis for axis in range(rank) if axis not in axes]
    order = [*rest, *axes]
    sizes = [cells.shape[axis] for axis in rest]
    x = emitter.emit(_aten.permute.default, (x, order), old, named=False)
    x = emitter.emit(_aten.reshape.default, (x, [*sizes, held.size]), old, named=False)
    missing = np.setdiff1d(wanted, held)
    line = np.concatenate([held.reshape(-1), missing])
    if missing.size:
        values = fill_values(emitter, cells.ids.reshape(-1)[missing])
        block = _make_constant(emitter, old, values.reshape([1] * len(rest) + [-1]), [*sizes, missing.size])
        x = emitter.emit(_aten.cat.default, ([x, block], len(rest)), old, named=False)
    x = select(emitter, old, x, len(rest), find_positions(line, wanted.reshape(-1)), line.size)
    x = emitter.emit(_aten.reshape.default, (x, [*sizes, *(wanted.shape[axis] for axis in axes)]), old, named=False)
    back = [order.index(axis) for axis in range(rank)]
    return emitter.emit(_aten.permute.default, (x, back), old, named=False)


def _make_block(emitter: Emitter, old: fx.Node, cells: Cells, wanted: IntArray) -> fx.Node:
    """Emit a tensor that holds the constants of the wanted cells and nothing else."""
    facts = emitter.facts
    ids = cells.ids.reshape(-1)[wanted]
    shape = [wanted.shape[axis] if axis in cells.axes else size for axis, size in enumerate(cells.shape)]
    if not bool((facts.kind[ids] == Kind.MAP).any()):
        return _make_constant(emitter, old, fill_values(emitter, ids), shape)
    sizes = cells.shape[2:]
    planes = [
        facts.map_of(identity, sizes).full() if facts.kind[identity] != Kind.VARYING else np.zeros(sizes)
        for identity in ids.reshape(-1).tolist()
    ]
    return _make_constant(emitter, old, np.stack(planes)[None], shape)


def fill_values(emitter: Emitter, ids: IntArray) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return the numbers of constant ids; 0 for ids that nobody uses."""
    facts = emitter.facts
    return np.where(facts.kind[ids] == Kind.CONST, facts.value[ids], 0.0)


def _make_constant(
    emitter: Emitter, old: fx.Node, values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], shape: list[int]
) -> fx.Node:
    like = old.meta["val"]
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(dtype=like.dtype, device=like.device)
    block = emitter.constant(f"known_channels.{old.name}", tensor, (values.shape, values.tobytes()))
    if list(tensor.shape) == shape:
        return block
    return emitter.emit(_aten.expand.default, (block, shape), old, named=False)
