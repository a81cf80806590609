"""Emit a recurrent node with cut parameters: one call for neighbouring layers with equally many units."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import fx
from torch.fx.node import Argument

from fxprune.channels.adapt import fill_values, find_positions, select
from fxprune.channels.facts import Cells
from fxprune.channels.grid import BoolArray, IntArray, all_cells, arrange
from fxprune.channels.record import LayerCut
from fxprune.channels.recurrent import Known
from fxprune.channels.rewriter import Rewriter
from fxprune.channels.rules.base import is_constant
from fxprune.channels.rules.recurrent_stack import GATES, Stack
from fxprune.channels.spatial import FloatArray
from fxprune.nodes import bind, get_tensor

_aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """What stays of one layer.

    Attributes:
        units: Units of each direction, [H] each; equally many.
        outputs: Outputs of each direction, [P] each; equally many.
        reads: Inputs that vary and that each direction reads, [I] each.
        known: What is known of its inputs, [I].
    """

    units: list[BoolArray]
    outputs: list[BoolArray]
    reads: list[BoolArray]
    known: Known

    @property
    def size(self) -> tuple[int, int]:
        """Number of units and of outputs of a direction."""
        return int(self.units[0].sum()), int(self.outputs[0].sum())

    @property
    def line(self) -> IntArray:
        """The outputs that stay, numbered as the next layer reads them."""
        return np.flatnonzero(np.concatenate(self.outputs))


@dataclass(frozen=True, eq=False)
class _Call:
    """A call in the new graph: neighbouring layers of one size.

    Attributes:
        first: Its first layer.
        node: The call.
    """

    first: int
    node: fx.Node


def rewrite_stack(stack: Stack, plans: list[LayerPlan], rewriter: Rewriter) -> None:
    """Emit the layers with the units that stay.

    Args:
        stack: The node as it was.
        plans: What stays of each layer.
        rewriter: The new graph.
    """
    made = cast("list[Cells]", rewriter.facts.cells[stack.node])
    whole = all(bool(mask.all()) for plan in plans for mask in (*plan.units, *plan.outputs))
    if not any(_is_needed(cells, rewriter) for cells in made):
        rewriter.put_items(stack.node, None, [None] * len(made))
        return
    line = _choose_input(stack, plans[0], rewriter)
    if whole and line.size == plans[0].known.which.size and rewriter.is_whole(stack.source):
        rewriter.copy_full(stack.node)
        return
    x, calls = _fetch_input(stack, line, rewriter), list[_Call]()
    for _, group in itertools.groupby(range(len(plans)), key=lambda index: plans[index].size):
        layers = list(group)
        calls.append(_Call(layers[0], _emit_call(stack, plans, layers, x, line, rewriter)))
        x, line = rewriter.emit(operator.getitem, (calls[-1].node, 0), stack.node, named=False), plans[layers[-1]].line
    items: list[fx.Node | None] = [x]
    held: list[IntArray | None] = [line.reshape(1, 1, -1)]
    for index in range(1, len(made)):
        item = _emit_state(stack, plans, calls, index, rewriter)
        items.append(None if item is None else item[0])
        held.append(None if item is None else item[1])
    rewriter.put_parts(stack.node, items, held)


def _is_needed(cells: Cells, rewriter: Rewriter) -> bool:
    return bool((rewriter.facts.used[cells.ids] & rewriter.facts.varies(cells.ids)).any())


def _choose_input(stack: Stack, plan: LayerPlan, rewriter: Rewriter) -> IntArray:
    """Return the inputs that the first layer reads, in order."""
    cells, held = rewriter.facts.of(stack.source), rewriter.held(stack.source)
    if cells.ids.size == 1:
        return np.arange(plan.known.which.size)
    needed = np.flatnonzero(np.any(plan.reads, axis=0))
    present = np.empty(0, dtype=np.int64) if held is None else held.reshape(-1)
    if stack.source.op != "placeholder" and present.size and bool(np.isin(needed, present).all()):
        return present
    return needed if needed.size else np.zeros(1, dtype=np.int64)


def _fetch_input(stack: Stack, line: IntArray, rewriter: Rewriter) -> fx.Node:
    if rewriter.facts.of(stack.source).ids.size == 1:
        return rewriter.fetch_full(stack.source)
    return rewriter.fetch(stack.source, line.reshape(1, 1, -1))


def _emit_call(
    stack: Stack, plans: list[LayerPlan], layers: list[int], x: fx.Node, line: IntArray, rewriter: Rewriter
) -> fx.Node:
    """Emit one call for layers of one size; `line` are the inputs that x holds."""
    columns = [line, *(plans[index].line for index in layers[:-1])]
    folds = [_fold(stack, plans, index, own) for index, own in zip(layers, columns, strict=True)]
    biased = stack.has_biases or any(bool(fold.any()) for pair in folds for fold in pair)
    parameters: list[fx.Node] = []
    for index, own, fold in zip(layers, columns, folds, strict=True):
        for direction in range(len(stack.names[index])):
            parameters += _cut_cell(stack, plans[index], (index, direction), own, fold[direction], biased, rewriter)
    states = [_cut_start(stack, plans, layers, number, rewriter) for number in range(len(stack.starts))]
    arguments = dict(bind(stack.node))
    arguments |= {"input": x, "hx": states if stack.kind == "lstm" else states[0], "params": parameters}
    arguments |= {"has_biases": biased, "num_layers": len(layers)}
    whole = len(layers) == len(plans)
    schema = cast("torch._ops.OpOverload", stack.node.target)._schema.arguments
    return rewriter.emit(stack.node.target, tuple(arguments[item.name] for item in schema), stack.node, named=whole)


def _fold(stack: Stack, plans: list[LayerPlan], index: int, line: IntArray) -> list[FloatArray]:
    """Return what the constant inputs that a layer loses add to its gates, [G, H] for each direction."""
    known = plans[index].known
    values = np.where(known.which, known.values, 0.0)
    values[line] = 0.0
    return [cell.inputs @ values for cell in stack.layers[index]]


def _cut_cell(
    stack: Stack,
    plan: LayerPlan,
    place: tuple[int, int],
    line: IntArray,
    fold: FloatArray,
    biased: bool,
    rewriter: Rewriter,
) -> list[fx.Node]:
    """Return the parameters of one cell."""
    index, direction = place
    cell, names = stack.layers[index][direction], stack.names[index][direction]
    units, outputs = np.flatnonzero(plan.units[direction]), np.flatnonzero(plan.outputs[direction])
    rows = (np.arange(GATES[stack.kind])[:, None] * cell.units + units).reshape(-1)
    made = [_cut(rewriter, stack, names[0], rows, line), _cut(rewriter, stack, names[1], rows, outputs)]
    if biased:
        added = fold.reshape(-1)[rows]
        made += _cut_biases(rewriter, names, rows, added, stack.has_biases)
    if cell.projection is not None:
        made.append(_cut(rewriter, stack, names[-1], outputs, units))
    return made


def _cut(rewriter: Rewriter, stack: Stack, name: fx.Node, rows: IntArray, columns: IntArray) -> fx.Node:
    """Return rows and columns of a weight, and write them down."""
    tensor = get_tensor(rewriter.gm, name)
    rewriter.record.append(
        LayerCut(
            layer=stack.node.name,
            weight=str(name.target),
            rows=tuple(rows.tolist()),
            channels=tuple(columns.tolist()),
            out_channels=int(tensor.shape[0]),
            in_channels=int(tensor.shape[1]),
        )
    )
    if (rows.size, columns.size) == tuple(tensor.shape) and bool((np.diff(columns) > 0).all()):
        return rewriter.constant(str(name.target), tensor, ())
    cut = tensor.detach().index_select(0, torch.from_numpy(rows)).index_select(1, torch.from_numpy(columns))
    return rewriter.constant(str(name.target), cut, (rows.tobytes(), columns.tobytes()))


def _cut_biases(
    rewriter: Rewriter,
    names: tuple[fx.Node, ...],
    rows: IntArray,
    added: FloatArray,
    present: bool,
) -> list[fx.Node]:
    """Return both biases; constants that were folded go into the one of the input."""
    weight = get_tensor(rewriter.gm, names[0])
    made = []
    for position, extra in ((0, added), (1, np.zeros_like(added))):
        if present:
            tensor = get_tensor(rewriter.gm, names[2 + position]).detach()
            target = str(names[2 + position].target)
        else:
            tensor = torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
            target = str(names[position].target).replace("weight", "bias")
        cut = tensor[torch.from_numpy(rows)]
        if bool(extra.any()):
            cut = (cut.double() + torch.from_numpy(extra)).to(weight)
        untouched = present and rows.size == tensor.shape[0] and not bool(extra.any())
        key = () if untouched else (rows.tobytes(), extra.tobytes())
        made.append(rewriter.constant(target, tensor if untouched else cut, key))
    return made


def _cut_start(stack: Stack, plans: list[LayerPlan], layers: Sequence[int], number: int, rewriter: Rewriter) -> fx.Node:
    """Return the initial state (0) or memory (1) of some layers, cut to their units."""
    start, directions = stack.starts[number], len(stack.layers[0])
    kept = [mask for index in layers for mask in (plans[index].outputs if number == 0 else plans[index].units)]
    lines = [np.flatnonzero(mask) for mask in kept]
    first = layers[0] * directions
    if is_constant(start):
        tensor = get_tensor(rewriter.gm, start).detach()
        rows = [tensor[first + row][:, torch.from_numpy(line)] for row, line in enumerate(lines)]
        key = (first, *(line.tobytes() for line in lines))
        return rewriter.constant(str(start.target), torch.stack(rows), key)
    whole = rewriter.fetch_full(start)
    if len(kept) == start.meta["val"].shape[0] and all(bool(mask.all()) for mask in kept):
        return whole
    parts = [_take_row(rewriter, start, whole, first + row, line) for row, line in enumerate(lines)]
    return _stack_rows(rewriter, stack.node, parts)


def _take_row(rewriter: Rewriter, like: fx.Node, x: fx.Node, row: int, line: IntArray) -> fx.Node:
    """Emit x[row : row + 1, :, line] of a state of the old graph's size."""
    part = rewriter.emit(_aten.slice.Tensor, (x, 0, row, row + 1), like, named=False)
    return select(rewriter, like, part, 2, line, like.meta["val"].shape[2])


def _stack_rows(rewriter: Rewriter, like: fx.Node, parts: list[fx.Node]) -> fx.Node:
    if len(parts) == 1:
        return parts[0]
    rows: list[Argument] = list(parts)
    return rewriter.emit(_aten.cat.default, (rows, 0), like, named=False)


def _emit_state(
    stack: Stack, plans: list[LayerPlan], calls: list[_Call], index: int, rewriter: Rewriter
) -> tuple[fx.Node, IntArray] | None:
    """Emit the last states (1) or memories (2) that stay, with their arrangement; None if none is needed."""
    cells = cast("list[Cells]", rewriter.facts.cells[stack.node])[index]
    if not _is_needed(cells, rewriter):
        return None
    found = arrange(rewriter.keep[cells.ids])
    wanted = all_cells(cells.grid) if found is None else found
    parts = [_emit_state_row(stack, plans, calls, index, row, rewriter) for row in wanted[:, 0]]
    return _stack_rows(rewriter, stack.node, parts), wanted


def _emit_state_row(
    stack: Stack, plans: list[LayerPlan], calls: list[_Call], index: int, wanted: IntArray, rewriter: Rewriter
) -> fx.Node:
    """Emit one row of the last states: [1, N, wanted]; units that are gone come back as their constants."""
    node, directions = stack.node, len(stack.layers[0])
    cells = cast("list[Cells]", rewriter.facts.cells[node])[index]
    size = cells.shape[2]
    number, line = int(wanted[0]) // size, wanted % size
    layer, direction = divmod(number, directions)
    call = next(call for call in reversed(calls) if call.first <= layer)
    state = rewriter.emit(operator.getitem, (call.node, index), node, named=False)
    row = (layer - call.first) * directions + direction
    x = rewriter.emit(_aten.slice.Tensor, (state, 0, row, row + 1), node, named=False)
    held = np.flatnonzero((plans[layer].outputs if index == 1 else plans[layer].units)[direction])
    missing = np.setdiff1d(line, held)
    if missing.size:
        values = fill_values(rewriter, cells.ids.reshape(-1)[number * size + missing])
        like = node.meta["val"][index]
        block = torch.from_numpy(values).to(like.dtype).reshape(1, 1, -1).expand(1, cells.shape[1], -1).contiguous()
        constant = rewriter.constant(f"known_channels.{node.name}", block, (values.tobytes(),))
        x = rewriter.emit(_aten.cat.default, ([x, constant], 2), node, named=False)
    order = np.concatenate([held, missing])
    return select(rewriter, node, x, 2, find_positions(order, line), order.size)
