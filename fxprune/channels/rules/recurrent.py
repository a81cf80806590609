"""LSTM, GRU and plain RNN: hidden units that are known or unused, and inputs that nobody reads."""

from __future__ import annotations

from typing import cast

import numpy as np
from torch import fx

from fxprune.channels.facts import Cells, Facts, Kind
from fxprune.channels.grid import IntArray
from fxprune.channels.recurrent import FUNCTIONS, Known, KnownCell, LiveCell, even_counts, find_known, find_live, join
from fxprune.channels.rewriter import Rewriter
from fxprune.channels.rules.base import Rule, is_activation, list_cells, pin_inputs, set_opaque
from fxprune.channels.rules.recurrent_cut import LayerPlan, rewrite_stack
from fxprune.channels.rules.recurrent_stack import Stack, read_stack


class RecurrentRule(Rule):
    """A unit that stays 0, or that nobody reads, leaves all gates, the state and the next layer."""

    def forward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Give every output of the last layer an id, and every entry of the last states."""
        stack = find_stack(gm, node, facts)
        if stack is None:
            set_opaque(node, facts)
            return
        known = known_cells(stack, facts)
        made: list[Cells] = []
        for index, value in enumerate(node.meta["val"]):
            shape = tuple(value.shape)
            ids = facts.new_ids((1, 1, shape[2]) if index == 0 else (shape[0], 1, shape[2]))
            made.append(Cells(shape, ids))
            found = _known_result(index, known)
            facts.set_constants(ids.reshape(-1)[found.which], found.values[found.which])
        facts.cells[node] = made

    def backward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """An input is used if a live unit reads it; states that come from outside stay whole."""
        stack = find_stack(gm, node, facts)
        if stack is None:
            pin_inputs(node, facts)
            return
        live = live_cells(stack, facts)
        facts.use(input_line(stack, facts), np.any([cell.inputs for cell in live[0]], axis=0))
        for state in stack.starts:
            for cells in list_cells(state, facts):
                facts.pin(cells.ids, f"{node.name} starts with all channels of {state.name}")
        _note_waste(stack, facts, live)

    def rewrite(self, node: fx.Node, rewriter: Rewriter) -> None:
        """Cut all parameters; layers with different numbers of units become calls of their own."""
        stack = find_stack(rewriter.gm, node, rewriter.facts)
        if stack is None:
            rewriter.copy_full(node)
            return
        facts = rewriter.facts
        known, live = known_cells(stack, facts), live_cells(stack, facts)
        plans: list[LayerPlan] = []
        for index, cells in enumerate(live):
            inputs = input_known(stack, facts) if index == 0 else join([cell.outputs for cell in known[index - 1]])
            units = even_counts([cell.units for cell in cells])
            projected = stack.layers[0][0].projection is not None
            outputs = even_counts([cell.outputs for cell in cells]) if projected else units
            plans.append(LayerPlan(units, outputs, [cell.inputs for cell in cells], inputs))
        rewrite_stack(stack, plans, rewriter)


def find_stack(gm: fx.GraphModule, node: fx.Node, facts: Facts) -> Stack | None:
    """Return a recurrent node as a stack of layers; None if its input or its parameters are not understood."""
    source = node.args[0]
    if not is_activation(source) or source not in facts.cells:
        return None
    if not set(facts.of(cast("fx.Node", source)).axes) <= {2}:
        return None
    return read_stack(gm, node)


def input_line(stack: Stack, facts: Facts) -> IntArray:
    """Return the id of every input, [I]."""
    return np.broadcast_to(facts.of(stack.source).ids.reshape(-1), (stack.layers[0][0].inputs.shape[2],))


def input_known(stack: Stack, facts: Facts) -> Known:
    """Return what is known of the stack's input, [I]."""
    ids = input_line(stack, facts)
    which = np.asarray(facts.kind[ids] == Kind.CONST)
    return Known(which, np.where(which, facts.value[ids], 0.0))


def known_cells(stack: Stack, facts: Facts) -> list[list[KnownCell]]:
    """Return what is known of every cell, [layer][direction]."""
    inputs, found = input_known(stack, facts), []
    for cells in stack.layers:
        found.append([find_known(cell, inputs) for cell in cells])
        inputs = join([cell.outputs for cell in found[-1]])
    return found


def live_cells(stack: Stack, facts: Facts) -> list[list[LiveCell]]:
    """Return what is needed of every cell, [layer][direction], from the last layer to the first."""
    known = known_cells(stack, facts)
    made = cast("list[Cells]", facts.cells[stack.node])
    needs = [facts.used[cells.ids] & facts.varies(cells.ids) for cells in made]
    directions = len(stack.layers[0])
    above = needs[0].reshape(directions, -1)
    found: list[list[LiveCell]] = []
    for index in reversed(range(len(stack.layers))):
        inputs = input_known(stack, facts) if index == 0 else join([cell.outputs for cell in known[index - 1]])
        row: list[LiveCell] = []
        for direction, cell in enumerate(stack.layers[index]):
            number = index * directions + direction
            state = needs[1][number, 0]
            memory = needs[2][number, 0] if len(needs) > 2 else np.zeros(cell.units, dtype=bool)
            row.append(find_live(cell, known[index][direction], inputs, above[direction] | state, memory))
        found.insert(0, row)
        above = np.any([cell.inputs for cell in row], axis=0).reshape(directions, -1) if index else above
    return found


def _known_result(index: int, known: list[list[KnownCell]]) -> Known:
    """Return what is known of one result: the sequence, the last state or the last memory; flattened."""
    if index == 0:
        return join([cell.outputs for cell in known[-1]])
    cells = [cell for layer in known for cell in layer]
    if index == 1:
        return join([cell.outputs for cell in cells])
    return join([Known(cell.units, np.zeros(cell.units.size)) for cell in cells])


def _note_waste(stack: Stack, facts: Facts, live: list[list[LiveCell]]) -> None:
    """Say which units stay though they are dead."""
    for index, (cells, known) in enumerate(zip(live, known_cells(stack, facts), strict=True)):
        kept = even_counts([cell.units for cell in cells])
        extra = sum(int((mask & ~cell.units).sum()) for mask, cell in zip(kept, cells, strict=True))
        if extra:
            reason = "a layer keeps a unit at least, and equally many in both directions"
            facts.notes.append((stack.node, f"layer {index}: {extra} units are dead and stay: {reason}."))
        if stack.layers[index][0].kind in FUNCTIONS:
            first = sum(
                int((cell.units & one.outputs.which & ~one.units).sum()) for cell, one in zip(cells, known, strict=True)
            )
            if first:
                reason = "their constant is not that of h0, which the first step reads"
                facts.notes.append((stack.node, f"layer {index}: {first} units are known and stay: {reason}."))
