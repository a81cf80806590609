"""Operators that put tensors together or spread them: cat and expand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from torch import fx

from fxprune.channels.facts import Cells, Facts, Kind
from fxprune.channels.grid import IntArray, project
from fxprune.channels.rewriter import Rewriter
from fxprune.channels.rules.base import Rule, constant_of, is_constant, opaque_cells, pin_inputs
from fxprune.channels.rules.operands import Operand
from fxprune.channels.rules.pointwise_cut import cut_constant
from fxprune.channels.rules.probe import drop_or_fill, forget_maps
from fxprune.channels.rules.values import constant_on_grid
from fxprune.nodes import bind, get_tensor


class CatRule(Rule):
    """Along the channel axis the ids stand side by side; along another axis they are tied to each other."""

    def forward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Join the ids, or make one for each set of ids that meet."""
        sources, axis = _arguments(node)
        shape = tuple(node.meta["val"].shape)
        if _joins_channels(node, facts):
            parts = [_spread_ids(gm, source, axis, facts) for source in sources]
            grid = np.broadcast_shapes(*(part.take([0], axis=axis).shape for part in parts))
            full = [np.broadcast_to(part, [*grid[:axis], part.shape[axis], *grid[axis + 1 :]]) for part in parts]
            ids = np.concatenate(full, axis=axis)
            facts.cells[node] = Cells(shape, ids if axis == 1 else forget_maps(ids, facts))
            return
        active = _active(sources, facts)
        if not _alike(active, axis):
            facts.cells[node] = opaque_cells(node.meta["val"], facts)
            return
        grid = active[0].grid
        ids = facts.new_ids(grid)
        facts.cells[node] = Cells(shape, ids)
        known, values = _common_value(gm, sources, facts, grid)
        facts.set_constants(ids[known], values[known])
        for cells in active:
            facts.tie(ids, cells.ids)

    def backward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Joined ids are the same; tied ids are used where the result is."""
        if _joins_channels(node, facts):
            return
        sources, axis = _arguments(node)
        active = _active(sources, facts)
        if not _alike(active, axis):
            pin_inputs(node, facts)
            return
        ids = facts.of(node).ids
        needed = facts.used[ids] & facts.varies(ids)
        for cells in active:
            facts.use(cells.ids, needed)

    def rewrite(self, node: fx.Node, rewriter: Rewriter) -> None:
        """Leave out operands of which nothing is left."""
        sources, axis = _arguments(node)
        if all(is_constant(source) or rewriter.is_whole(source) for source in sources):
            rewriter.copy_full(node)
        elif not _joins_channels(node, rewriter.facts):
            if _alike(_active(sources, rewriter.facts), axis):
                _rewrite_tied(node, rewriter)
            else:
                rewriter.copy_full(node)
        elif rewriter.facts.of(node).axes == (axis,):
            _rewrite_joined(node, rewriter)
        else:
            rewriter.copy_full(node)


def _arguments(node: fx.Node) -> tuple[list[fx.Node], int]:
    arguments = bind(node)
    sources = list(cast("Sequence[fx.Node]", arguments["tensors"]))
    return sources, int(cast("int", arguments.get("dim", 0))) % int(node.meta["val"].ndim)


def _joins_channels(node: fx.Node, facts: Facts) -> bool:
    sources, axis = _arguments(node)
    return any(not is_constant(source) and axis in facts.of(source).axes for source in sources)


def _active(sources: Sequence[fx.Node], facts: Facts) -> list[Cells]:
    """Return the ids of the operands that depend on a node, not on the model alone."""
    return [facts.of(source) for source in sources if not is_constant(source)]


def _alike(operands: Sequence[Cells], axis: int) -> bool:
    """Return whether all operands have ids on the same axes, not on the one along which they are joined."""
    return len({cells.grid for cells in operands}) == 1 and axis not in operands[0].axes


def _spread_ids(gm: fx.GraphModule, source: fx.Node, axis: int, facts: Facts) -> IntArray:
    """Return an operand's ids with one entry for every index of the axis."""
    shape = tuple(source.meta["val"].shape)
    if not is_constant(source):
        ids = facts.of(source).ids
        return np.repeat(ids, shape[axis], axis=axis) if ids.shape[axis] == 1 else ids
    if source not in facts.cells:
        grid = tuple(size if other == axis else 1 for other, size in enumerate(shape))
        ids = facts.new_ids(grid)
        values, clear = constant_on_grid(constant_of(gm, source), shape, grid)
        facts.set_constants(ids[clear], values[clear])
        facts.cells[source] = Cells(shape, ids)
    return facts.of(source).ids


def _common_value(
    gm: fx.GraphModule, sources: Sequence[fx.Node], facts: Facts, grid: tuple[int, ...]
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.bool_]], np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    """Return in which cells all operands have one and the same constant, and the constant."""
    known = np.ones(grid, dtype=bool)
    first: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None = None
    for source in sources:
        if is_constant(source):
            values, clear = constant_on_grid(constant_of(gm, source), tuple(source.meta["val"].shape), grid)
        else:
            ids = np.broadcast_to(facts.of(source).ids, grid)
            values, clear = facts.value[ids], np.asarray(facts.kind[ids] == Kind.CONST)
        known &= clear
        first = values if first is None else first
        known &= values == first
    assert first is not None
    return known, np.asarray(first)


def _rewrite_joined(node: fx.Node, rewriter: Rewriter) -> None:
    """Emit a cat of what is left of the operands."""
    sources, axis = _arguments(node)
    parts: list[fx.Node] = []
    lines: list[IntArray] = []
    offset = 0
    for source in sources:
        size = int(source.meta["val"].shape[axis])
        found = _remaining_part(source, axis, rewriter)
        if found is not None:
            parts.append(found[0])
            lines.append(found[1] + offset)
        offset += size
    if not parts:
        drop_or_fill(node, rewriter)
        return
    rank = int(node.meta["val"].ndim)
    cells = np.concatenate(lines).reshape([-1 if other == axis else 1 for other in range(rank)])
    if not rewriter.suffices(node, cells):
        rewriter.copy_full(node)
        return
    if len(parts) == 1:
        rewriter.put(node, parts[0], cells)
        return
    rewriter.put(node, rewriter.emit(node.target, (parts, axis), node), cells)


def _remaining_part(source: fx.Node, axis: int, rewriter: Rewriter) -> tuple[fx.Node, IntArray] | None:
    """Return what is left of an operand and its indices on the axis."""
    size = int(source.meta["val"].shape[axis])
    if is_constant(source):
        ids = rewriter.facts.of(source).ids.reshape(-1)
        if not bool(rewriter.facts.varies(ids).any()):
            return None
        return rewriter.constant(str(source.target), get_tensor(rewriter.gm, source), ()), np.arange(size)
    held = rewriter.held(source)
    if held is None:
        return None
    whole = rewriter.facts.of(source).ids.size == 1
    return rewriter.made_node(source), np.arange(size) if whole else held.reshape(-1)


def _rewrite_tied(node: fx.Node, rewriter: Rewriter) -> None:
    """Emit a cat along an axis without channels: all operands in one arrangement."""
    sources, axis = _arguments(node)
    wanted = rewriter.kept_cells(node)
    if wanted is None:
        rewriter.drop(node)
        return
    facts = rewriter.facts
    grid = facts.of(node).grid
    for source in sources:
        held = None if is_constant(source) else rewriter.held(source)
        if held is not None and facts.of(source).grid == grid and bool(np.isin(wanted, held).all()):
            wanted = held
            break
    parts: list[fx.Node] = []
    for source in sources:
        shape = tuple(source.meta["val"].shape)
        ids = None if is_constant(source) else facts.of(source).ids
        smaller = (
            tuple(ids.shape)
            if ids is not None
            else tuple(size if size > 1 and extent > 1 else 1 for size, extent in zip(shape, grid, strict=True))
        )
        need = project(wanted, grid, smaller)
        if need is None:
            rewriter.copy_full(node)
            return
        operand = Operand(source, shape, ids)
        parts.append(cut_constant(operand, rewriter, smaller, need) if ids is None else rewriter.fetch(source, need))
    rewriter.put(node, rewriter.emit(node.target, (parts, axis), node), wanted)


class ExpandRule(Rule):
    """Spreading over axes that carry no ids; the ids stay."""

    def forward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Take the ids along."""
        cells = facts.of(cast("fx.Node", node.args[0]))
        shape = tuple(node.meta["val"].shape)
        ids = cells.ids.reshape((1,) * (len(shape) - len(cells.shape)) + cells.grid)
        facts.cells[node] = Cells(shape, ids if len(shape) == len(cells.shape) else forget_maps(ids, facts))

    def backward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """The ids are the same, or stand for moved ones: nothing to pass on."""

    def rewrite(self, node: fx.Node, rewriter: Rewriter) -> None:
        """Rewrite the literal sizes."""
        source = cast("fx.Node", node.args[0])
        held = rewriter.held(source)
        if held is None:
            drop_or_fill(node, rewriter)
            return
        cells = rewriter.facts.of(node)
        arrangement = held.reshape((1,) * (len(cells.shape) - held.ndim) + held.shape)
        if rewriter.is_whole(source) or not rewriter.suffices(node, arrangement):
            rewriter.copy_full(node)
            return
        sizes = [arrangement.shape[axis] if cells.grid[axis] > 1 else size for axis, size in enumerate(cells.shape)]
        rewriter.put(node, rewriter.emit(node.target, (rewriter.made_node(source), sizes), node), arrangement)
