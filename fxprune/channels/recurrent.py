"""Hidden units of recurrent layers: which are known, and which nobody needs. Plain functions on arrays.

For unit j of one direction of one layer:
    LSTM: nothing reaches the candidate gate g, and c0 = h0 = 0: the unit stays 0, whatever the other gates do
    GRU: nothing reaches the candidate gate n, and h0 = 0: the unit stays 0
    plain RNN: a row that reads nothing that varies gives f(bias) at every step, but the first step reads h0
    a unit that no live row and no consumer reads is unused
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fxprune.channels.grid import BoolArray
from fxprune.channels.spatial import FloatArray

FUNCTIONS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "rnn_tanh": np.tanh,
    "rnn_relu": lambda x: np.maximum(x, 0.0),
}
"""What a plain recurrent layer applies."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One direction of one recurrent layer: G gates, H units, P outputs (P = H without a projection), I inputs.

    Attributes:
        kind: "lstm", "gru", "rnn_tanh" or "rnn_relu".
        inputs: Weights of the input, [G, H, I].
        states: Weights of the state, [G, H, P].
        input_bias: [G, H]; zeros if there is none.
        state_bias: [G, H]; zeros if there is none.
        projection: [P, H], or None.
        starts_at_zero: Which outputs have h0 = 0, [P].
        memory_starts_at_zero: Which units have c0 = 0, [H]; all True but for LSTM.
    """

    kind: str
    inputs: FloatArray
    states: FloatArray
    input_bias: FloatArray
    state_bias: FloatArray
    projection: FloatArray | None
    starts_at_zero: BoolArray
    memory_starts_at_zero: BoolArray

    @property
    def units(self) -> int:
        """Number of hidden units, H."""
        return int(self.inputs.shape[1])

    @property
    def outputs(self) -> int:
        """Number of outputs, P."""
        return int(self.states.shape[2])

    @property
    def candidate(self) -> int:
        """The gate that makes new content; without it nothing but the old state goes on."""
        return 0 if self.kind in FUNCTIONS else 2


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a vector at every step.

    Attributes:
        which: Which entries are constants.
        values: Their values; 0 elsewhere.
    """

    which: BoolArray
    values: FloatArray

    @property
    def zero(self) -> BoolArray:
        """Which entries are the constant 0."""
        return np.asarray(self.which & (self.values == 0))


@dataclass(frozen=True, eq=False)
class KnownCell:
    """What is known of one cell.

    Attributes:
        units: Units whose state and memory are 0 at every step, h0 included, [H].
        states: Outputs that are 0 at every step, h0 included, [P].
        outputs: Outputs after each step, [P].
    """

    units: BoolArray
    states: BoolArray
    outputs: Known


def join(parts: Sequence[Known]) -> Known:
    """Put the outputs of both directions side by side: what the next layer reads."""
    return Known(np.concatenate([part.which for part in parts]), np.concatenate([part.values for part in parts]))


def find_known(cell: Cell, inputs: Known) -> KnownCell:
    """Return what is known of a cell.

    The units that stay 0 are the largest set of which each reads, in its candidate gate, only inputs and units that are
    0; by induction over the steps all of them are.

    Args:
        cell: The cell.
        inputs: What is known of its inputs, [I].
    """
    gate = cell.candidate
    fixed = np.asarray(~(cell.inputs[gate][:, ~inputs.which] != 0).any(axis=1))
    content = cell.inputs[gate] @ inputs.values + cell.input_bias[gate]
    silent = fixed & cell.memory_starts_at_zero & _is_silent(cell, content)
    while True:
        states = _zero_outputs(cell, silent)
        quiet = ~(cell.states[gate][:, ~states] != 0).any(axis=1)
        if not bool((silent & ~quiet).any()):
            break
        silent = silent & quiet
    if cell.kind not in FUNCTIONS:
        return KnownCell(silent, states, Known(states, np.zeros(cell.outputs)))
    which = fixed & np.asarray(quiet)
    values = np.where(which, FUNCTIONS[cell.kind](content + cell.state_bias[gate]), 0.0)
    return KnownCell(silent, states, Known(which, values))


def _is_silent(cell: Cell, content: FloatArray) -> BoolArray:
    """Return which units get nothing new: their state stays 0 if it is 0."""
    gate = cell.candidate
    if cell.kind in FUNCTIONS:
        silent = FUNCTIONS[cell.kind](content + cell.state_bias[gate]) == 0
    elif cell.kind == "gru":  # the reset gate scales the state's part alone: both have to be 0
        silent = (content == 0) & (cell.state_bias[gate] == 0)
    else:
        silent = content + cell.state_bias[gate] == 0
    starts = cell.starts_at_zero if cell.projection is None else True
    return np.asarray(silent & starts)


def _zero_outputs(cell: Cell, units: BoolArray) -> BoolArray:
    """Return which outputs are 0 at every step if these units are."""
    if cell.projection is None:
        return units
    return np.asarray(cell.starts_at_zero & ~(cell.projection[:, ~units] != 0).any(axis=1))


@dataclass(frozen=True, eq=False)
class LiveCell:
    """What of one cell is needed.

    Attributes:
        units: Which units, [H].
        outputs: Which outputs, [P].
        inputs: Which inputs that are not constant, [I].
    """

    units: BoolArray
    outputs: BoolArray
    inputs: BoolArray


def find_live(cell: Cell, known: KnownCell, inputs: Known, needed: BoolArray, memory: BoolArray) -> LiveCell:
    """Return what of a cell is needed: what consumers read, and what live units read.

    Args:
        cell: The cell.
        known: What is known of it.
        inputs: What is known of its inputs, [I].
        needed: Outputs that consumers need and that are not known, [P].
        memory: Units whose memory (the second state of an LSTM) is needed, [H].
    """
    outputs, units = needed, np.asarray(memory & ~known.units)
    while True:
        if cell.projection is None:
            wider = units | outputs
        else:
            wider = units | ((cell.projection[outputs] != 0).any(axis=0) & ~known.units)
        read = (cell.states[:, wider] != 0).any(axis=(0, 1)) & ~known.states
        more = np.asarray(outputs | read if cell.projection is not None else outputs | read | wider)
        if np.array_equal(wider, units) and np.array_equal(more, outputs):
            break
        units, outputs = np.asarray(wider), more
    columns = (cell.inputs[:, units] != 0).any(axis=(0, 1)) & ~inputs.which
    return LiveCell(units, outputs, np.asarray(columns))


def even_counts(masks: Sequence[BoolArray]) -> list[BoolArray]:
    """Keep equally many of each, at least one: first the dead ones in front are kept too."""
    most = max(1, *(int(mask.sum()) for mask in masks))
    return [mask | (np.cumsum(~mask) <= most - int(mask.sum())) for mask in masks]
