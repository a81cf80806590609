"""Operators that compute every element from the elements at the same place: activations, add, mul, where, ..."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import fx

from fxprune.channels.facts import Cells, Completion, Facts, Join, Kind
from fxprune.channels.rewriter import Rewriter
from fxprune.channels.rules.base import Rule, constant_of, is_activation, is_constant
from fxprune.channels.rules.operands import Operand, find_operands
from fxprune.channels.rules.pointwise_cut import rewrite_pointwise
from fxprune.channels.rules.values import constant_on_grid, evaluate
from fxprune.channels.spatial import FloatArray, SpatialMap, combine

_aten = torch.ops.aten
_ADD, _PRODUCT = _aten.add.Tensor, _aten.mul.Tensor
_SMALL = 8
"""An operand this many times smaller than the result is brought into its arrangement rather than tied to it."""


class PointwiseRule(Rule):
    """A result is known where all operands are; an operand is used where the result is used and varies."""

    def forward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Broadcast the grids, compute known values, tie the operands to the result."""
        value = node.meta["val"]
        operands = find_operands(node, facts)
        active = [operand for operand in operands if operand.ids is not None]
        grid = tuple(np.broadcast_shapes(*(operand.ids.shape for operand in active if operand.ids is not None)))
        cells = Cells(tuple(value.shape), facts.new_ids(grid))
        facts.cells[node] = cells
        if value.is_floating_point() or value.dtype is torch.bool:
            _compute_values(gm, node, facts, operands, cells)
        _tie_operands(node, facts, active, cells)

    def backward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Pass on which cells of the result are used and vary."""
        ids = facts.of(node).ids
        needed = facts.used[ids] & facts.varies(ids)
        for operand in find_operands(node, facts):
            if operand.ids is None:
                continue
            axes = tuple(axis for axis, size in enumerate(operand.ids.shape) if size < ids.shape[axis])
            facts.use(operand.ids, np.asarray(needed.any(axis=axes, keepdims=True)))

    def rewrite(self, node: fx.Node, rewriter: Rewriter) -> None:
        """Bring the operands into one arrangement."""
        rewrite_pointwise(node, find_operands(node, rewriter.facts), rewriter, adds=node.target is _ADD)


def is_pointwise(node: fx.Node, facts: Facts) -> bool:
    """Return whether all tensor operands have cells or are constants, and at least one has cells."""
    sources = node.all_input_nodes
    known = all(is_constant(source) or (is_activation(source) and source in facts.cells) for source in sources)
    return known and any(source in facts.cells for source in sources)


def _compute_values(gm: fx.GraphModule, node: fx.Node, facts: Facts, operands: Sequence[Operand], cells: Cells) -> None:
    """Write the values of the cells whose operands are all known; a product with 0 is 0."""
    grid = cells.grid
    numbers: dict[fx.Node, FloatArray] = {}
    known = np.ones(grid, dtype=bool)
    mapped = np.zeros(grid, dtype=bool)
    zero = np.zeros(grid, dtype=bool)
    for operand in operands:
        if operand.ids is None:
            numbers[operand.node], clear = constant_on_grid(constant_of(gm, operand.node), operand.shape, grid)
            known &= clear
            zero |= clear & (numbers[operand.node] == 0)
            continue
        ids = np.broadcast_to(operand.ids, grid)
        numbers[operand.node] = facts.value[ids]
        known &= ~facts.varies(ids)
        mapped |= np.asarray(facts.kind[ids] == Kind.MAP)
        zero |= facts.is_zero(ids)
    if node.target is _PRODUCT:
        facts.set_constants(cells.ids[zero], np.zeros(int(zero.sum())))
        known &= ~zero
    plain = known & ~mapped
    if bool(plain.any()):
        facts.set_constants(cells.ids[plain], evaluate(node, {n: array[plain] for n, array in numbers.items()}))
    if len(operands) == 1:
        _compute_maps(node, facts, operands[0], cells)
        return
    for index in np.flatnonzero(known & mapped).tolist():
        _compute_map(node, facts, operands, cells, numbers, index)


def _compute_maps(node: fx.Node, facts: Facts, operand: Operand, cells: Cells) -> None:
    """Write all maps of an operator with one operand, those with the same classes at once."""
    assert operand.ids is not None
    sources, results = operand.ids.reshape(-1), cells.ids.reshape(-1)
    groups: dict[int, list[int]] = {}
    for index in np.flatnonzero(facts.kind[sources] == Kind.MAP).tolist():
        groups.setdefault(id(facts.maps[int(sources[index])].classes), []).append(index)
    for members in groups.values():
        planes = [facts.maps[int(sources[index])] for index in members]
        table = evaluate(node, {operand.node: np.stack([plane.table for plane in planes])})
        facts.set_maps(results[members], SpatialMap(planes[0].classes, table))


def _compute_map(
    node: fx.Node,
    facts: Facts,
    operands: Sequence[Operand],
    cells: Cells,
    numbers: dict[fx.Node, FloatArray],
    index: int,
) -> None:
    """Write the map of one cell: the operator applied to the tables of its operands."""
    sizes = cells.shape[2:]
    active = [operand for operand in operands if operand.ids is not None]
    if any(operand.shape[2:] != sizes for operand in active) or cells.axes != (1,):
        return
    ids = [
        int(np.broadcast_to(operand.ids, cells.grid).reshape(-1)[index])
        for operand in active
        if operand.ids is not None
    ]
    fixed = {operand.node: numbers[operand.node].reshape(-1)[index] for operand in operands if operand.ids is None}

    def apply(tables: Sequence[FloatArray]) -> FloatArray:
        values = {operand.node: table for operand, table in zip(active, tables, strict=True)}
        shape = tables[0].shape
        return evaluate(node, values | {other: np.full(shape, number) for other, number in fixed.items()})

    plane = combine([facts.map_of(item, sizes) for item in ids], apply)
    facts.set_maps(cells.ids.reshape(-1)[[index]], SpatialMap(plane.classes, plane.table[None]))


def _tie_operands(node: fx.Node, facts: Facts, active: Sequence[Operand], cells: Cells) -> None:
    """Tie operands of the result's grid to the result; they may hold fewer channels in an addition or where known."""
    alike = [operand.ids for operand in active if operand.ids is not None and operand.ids.shape == cells.grid]
    size = int(np.prod(cells.shape))
    large = [
        operand
        for operand in active
        if operand.ids is not None
        and operand.ids.shape == cells.grid
        and (len(active) == 1 or int(np.prod(operand.shape)) * _SMALL > size)
    ]
    joinable = node.target is _ADD and node.kwargs.get("alpha", 1) == 1 and len(cells.axes) == 1
    if joinable and len(active) == len(alike) == len(large) == 2:
        facts.joins.append(Join(node, cells.ids.reshape(-1), tuple(ids.reshape(-1) for ids in alike)))
        return
    reason = f"their constants meet varying values in {node.name}"
    for operand in large:
        assert operand.ids is not None
        loose = facts.varies(cells.ids) & ~facts.varies(operand.ids)
        facts.tie(cells.ids[~loose], operand.ids[~loose])
        if bool(loose.any()):
            item = Completion(node, operand.node, cells.ids[loose], operand.ids[loose], reason)
            facts.completions.append(item)
