"""Emit pointwise operators for operands that hold different channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import fx
from torch.fx.node import map_arg

from fxprune.channels.adapt import find_positions, select
from fxprune.channels.facts import Kind
from fxprune.channels.grid import IntArray, Shape, all_cells, project, spread
from fxprune.channels.rewriter import Rewriter
from fxprune.channels.rules.operands import Operand
from fxprune.nodes import get_tensor

_aten = torch.ops.aten


def rewrite_pointwise(node: fx.Node, operands: Sequence[Operand], rewriter: Rewriter, *, adds: bool) -> None:
    """Emit a pointwise operator on the channels that stay of its result.

    Args:
        node: The node of the old graph.
        operands: Its tensor operands.
        rewriter: The new graph.
        adds: Whether it is an addition, so that an operand with fewer channels can be added into the other one.
    """
    wanted = rewriter.kept_cells(node)
    if wanted is None:
        rewriter.drop(node)
        return
    base = _choose_base(node, operands, rewriter)
    if base is not None:
        held = rewriter.held(base.node)
        assert held is not None
        wanted = held.reshape(wanted.shape[: wanted.ndim - held.ndim] + held.shape)
    if adds and base is not None and _add_into(node, base, operands, rewriter, wanted):
        return
    grid = rewriter.facts.of(node).grid
    wanted = _put_known_last(operands, rewriter, grid, wanted)
    sources = _bring_together(operands, rewriter, grid, wanted)
    if sources is None:
        wanted = all_cells(grid)
        sources = _bring_together(operands, rewriter, grid, wanted)
    assert sources is not None
    args, kwargs = map_arg((node.args, dict(node.kwargs)), sources.__getitem__)
    rewriter.put(node, rewriter.emit(node.target, args, node, kwargs), wanted)


def _choose_base(node: fx.Node, operands: Sequence[Operand], rewriter: Rewriter) -> Operand | None:
    """Return the operand whose channels the result takes over: the smallest that holds all that are needed."""
    grid = rewriter.facts.of(node).grid
    found: list[tuple[int, int, Operand]] = []
    for index, operand in enumerate(operands):
        if operand.ids is None or operand.ids.shape != grid:
            continue
        held = rewriter.held(operand.node)
        if held is not None and rewriter.suffices(node, held):
            found.append((held.size, index, operand))
    return min(found)[2] if found else None


def _put_known_last(operands: Sequence[Operand], rewriter: Rewriter, grid: Shape, wanted: IntArray) -> IntArray:
    """Return the result's arrangement in an order that only appends constants to the largest operand that lacks some.

    Then that operand is not reordered; smaller ones are, as the gate of a squeeze-and-excitation block is.
    """
    lacking: list[tuple[int, int, IntArray]] = []
    line = wanted.reshape(-1)
    for index, operand in enumerate(operands):
        held = None if operand.ids is None or operand.ids.shape != grid else rewriter.held(operand.node)
        if held is not None and not bool(np.isin(line, held).all()):
            lacking.append((math.prod(operand.shape), -index, held.reshape(-1)))
    if not lacking or wanted.size != max(wanted.shape):
        return wanted
    *_, held = max(lacking, key=lambda item: item[:2])
    return np.concatenate([held[np.isin(held, line)], line[~np.isin(line, held)]]).reshape(wanted.shape)


def _bring_together(
    operands: Sequence[Operand], rewriter: Rewriter, grid: Shape, wanted: IntArray
) -> dict[fx.Node, fx.Node] | None:
    """Return each operand in the arrangement of the result; None if one cannot have it."""
    needs: list[IntArray | None] = []
    for operand in operands:
        smaller = _own_grid(operand, grid)
        needs.append(project(wanted, grid, smaller))
    if any(need is None for need in needs):
        return None
    found: dict[fx.Node, fx.Node] = {}
    for operand, need in zip(operands, needs, strict=True):
        assert need is not None
        if operand.ids is None:
            found[operand.node] = cut_constant(operand, rewriter, _own_grid(operand, grid), need)
            continue
        x = take_along(operand, rewriter.fetch(operand.node, operand.strip(need)), rewriter, grid, wanted)
        if x is None:
            return None
        found[operand.node] = x
    return found


def take_along(operand: Operand, x: fx.Node, rewriter: Rewriter, grid: Shape, wanted: IntArray) -> fx.Node | None:
    """Take the wanted indices of axes on which the result has ids and a whole operand has none, but is not broadcast.

    Returns:
        The node; None if the indices differ from line to line.
    """
    assert operand.ids is not None
    rank = operand.node.meta["val"].ndim
    coordinates = np.unravel_index(wanted, grid)
    for axis, size in enumerate(operand.shape):
        if size == 1 or grid[axis] == 1 or operand.ids.shape[axis] > 1:
            continue
        line = np.moveaxis(coordinates[axis], axis, 0).reshape(wanted.shape[axis], -1)
        if not bool((line == line[:, :1]).all()):
            return None
        x = select(rewriter, operand.node, x, axis - len(grid) + rank, line[:, 0].astype(np.int64), size)
    return x


def _own_grid(operand: Operand, grid: Shape) -> Shape:
    """Return the grid of an operand; a constant has ids on the result's grid axes on which it is not broadcast."""
    if operand.ids is not None:
        return tuple(operand.ids.shape)
    return tuple(size if size > 1 and extent > 1 else 1 for size, extent in zip(operand.shape, grid, strict=True))


def cut_constant(operand: Operand, rewriter: Rewriter, grid: Shape, wanted: IntArray) -> fx.Node:
    """Emit the part of a constant operand that belongs to the wanted cells of its grid."""
    tensor = get_tensor(rewriter.gm, operand.node)
    name = str(operand.node.target)
    if np.array_equal(wanted, all_cells(grid)):
        return rewriter.constant(name, tensor, ())
    elements = operand.strip(spread(wanted, operand.shape, grid))
    cut = tensor.detach().reshape(-1)[torch.from_numpy(elements)]
    return rewriter.constant(name, cut, (wanted.shape, wanted.tobytes()))


def _add_into(node: fx.Node, base: Operand, operands: Sequence[Operand], rewriter: Rewriter, wanted: IntArray) -> bool:
    """Emit an addition whose other operand holds fewer channels as an index_add; return whether that was possible."""
    others = [operand for operand in operands if operand is not base]
    cells = rewriter.facts.of(node)
    if len(others) != 1 or others[0].ids is None or len(cells.axes) != 1 or node.kwargs or len(node.args) != 2:
        return False
    other = others[0]
    held = rewriter.held(other.node)
    present = np.empty(0, dtype=np.int64) if held is None else held.reshape(-1)
    line = wanted.reshape(-1)
    if other.shape != cells.shape or base.shape != cells.shape or np.array_equal(present, line):
        return False
    if other.ids is None or other.ids.shape != cells.grid or not bool(np.isin(present, line).all()):
        return False
    lost = np.setdiff1d(line, present)
    ids = other.ids.reshape(-1)[lost]
    if bool((rewriter.facts.kind[ids] == Kind.MAP).any()):
        return False
    result = rewriter.made_node(base.node)
    if present.size:
        index = find_positions(line, present)
        positions = rewriter.constant(f"kept_channels.{node.name}", torch.from_numpy(index), (index.tobytes(),))
        arguments = (result, cells.axes[0], positions, rewriter.made_node(other.node))
        result = rewriter.emit(_aten.index_add.default, arguments, node)
    result = _add_constants(node, rewriter, result, wanted, other, lost)
    rewriter.put(node, result, wanted)
    return True


def _add_constants(
    node: fx.Node, rewriter: Rewriter, x: fx.Node, wanted: IntArray, other: Operand, lost: IntArray
) -> fx.Node:
    """Add the constants of channels that an operand has lost."""
    assert other.ids is not None
    facts = rewriter.facts
    ids = other.ids.reshape(-1)
    values = np.where(facts.kind[ids] == Kind.CONST, facts.value[ids], 0.0)
    values = np.where(np.isin(np.arange(ids.size), lost), values, 0.0)[wanted]
    if not bool(values.any()):
        return x
    value = node.meta["val"]
    tensor = torch.from_numpy(values).to(dtype=value.dtype, device=value.device)
    constant = rewriter.constant(f"known_channels.{node.name}", tensor, (values.tobytes(),))
    return rewriter.emit(_aten.add.Tensor, (x, constant), node, named=False)
