"""Read a recurrent node: its layers with their parameters as arrays, gate by gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import fx

from fxprune.channels.grid import BoolArray
from fxprune.channels.recurrent import Cell
from fxprune.channels.rules.base import is_constant
from fxprune.channels.spatial import FloatArray
from fxprune.nodes import bind, get_tensor

_aten = torch.ops.aten
KINDS: dict[object, str] = {
    _aten.lstm.input: "lstm",
    _aten.gru.input: "gru",
    _aten.rnn_tanh.input: "rnn_tanh",
    _aten.rnn_relu.input: "rnn_relu",
}
"""Operators with all parameters in one flat list."""
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""Blocks of rows in each weight: i f g o, r z n, or one."""


@dataclass(frozen=True, eq=False)
class Stack:
    """A recurrent node.

    Attributes:
        node: The node.
        kind: A value of `KINDS`.
        source: The input, [T, N, I] or [N, T, I].
        starts: Nodes of h0 and, for LSTM, c0; each [layers * directions, N, P or H].
        layers: Cells, [layer][direction].
        names: Nodes of the parameters of each cell in the order of the operator: input weight, state weight, two biases
            if there are any, projection if there is one; [layer][direction].
        has_biases: Whether the operator takes biases.
    """

    node: fx.Node
    kind: str
    source: fx.Node
    starts: tuple[fx.Node, ...]
    layers: list[list[Cell]]
    names: list[list[tuple[fx.Node, ...]]]
    has_biases: bool


def read_stack(gm: fx.GraphModule, node: fx.Node) -> Stack | None:
    """Return a recurrent node as layers; None if a parameter is no constant or not finite."""
    arguments, kind = bind(node), KINDS[node.target]
    parameters = list(cast("Sequence[fx.Node]", arguments["params"]))
    if arguments["train"] or not all(_is_finite(gm, parameter) for parameter in parameters):
        return None
    directions = 2 if arguments["bidirectional"] else 1
    count = int(cast("int", arguments["num_layers"]))
    each, rest = divmod(len(parameters), directions * count)
    has_biases = bool(arguments["has_biases"])
    if rest or each not in ((4, 5) if has_biases else (2, 3)):
        return None
    hx = arguments["hx"]
    starts = (hx,) if isinstance(hx, fx.Node) else tuple(cast("Sequence[fx.Node]", hx))
    quiet = [_find_zeros(gm, start) for start in starts]
    names = [tuple(parameters[first : first + each]) for first in range(0, len(parameters), each)]
    cells = [_read_cell(gm, kind, own, has_biases, quiet, number) for number, own in enumerate(names)]
    return Stack(
        node,
        kind,
        cast("fx.Node", node.args[0]),
        starts,
        [cells[first : first + directions] for first in range(0, len(cells), directions)],
        [names[first : first + directions] for first in range(0, len(names), directions)],
        has_biases,
    )


def _is_finite(gm: fx.GraphModule, parameter: fx.Node) -> bool:
    return is_constant(parameter) and bool(torch.isfinite(get_tensor(gm, parameter)).all())


def _find_zeros(gm: fx.GraphModule, start: fx.Node) -> BoolArray:
    """Return which entries of an initial state are 0 in the whole batch, [layers * directions, units]."""
    shape = start.meta["val"].shape
    if not is_constant(start):
        return np.zeros((shape[0], shape[2]), dtype=bool)
    return np.asarray((get_tensor(gm, start) == 0).all(dim=1).cpu().numpy())


def _read_cell(
    gm: fx.GraphModule, kind: str, names: tuple[fx.Node, ...], has_biases: bool, quiet: list[BoolArray], number: int
) -> Cell:
    gates = GATES[kind]
    weights = [_numbers(gm, name) for name in names]
    inputs, states = (weight.reshape(gates, -1, weight.shape[1]) for weight in weights[:2])
    units = inputs.shape[1]
    biases = weights[2:4] if has_biases else [np.zeros(gates * units)] * 2
    input_bias, state_bias = (bias.reshape(gates, units) for bias in biases)
    projected = len(names) in (3, 5)
    memory = quiet[1][number] if len(quiet) > 1 else np.ones(units, dtype=bool)
    projection = weights[-1] if projected else None
    return Cell(kind, inputs, states, input_bias, state_bias, projection, quiet[0][number], memory)


def _numbers(gm: fx.GraphModule, node: fx.Node) -> FloatArray:
    return np.asarray(get_tensor(gm, node).detach().double().cpu().numpy())
