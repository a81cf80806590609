"""What is known of every channel: its value, who needs it, which channels go together."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import fx

from fxprune.channels.grid import BoolArray, IntArray, Shape
from fxprune.channels.spatial import FloatArray, SpatialMap, constant_map


class Kind(enum.IntEnum):
    """How the value of a channel depends on the input."""

    CONST = 0
    """One number, whatever the input."""
    MAP = 1
    """Independent of the input, different over space."""
    VARYING = 2
    """Anything."""


@dataclass(frozen=True, eq=False)
class Cells:
    """The channel ids of one tensor.

    Attributes:
        shape: The tensor's shape.
        ids: Ids over the tensor's grid: the same rank, size 1 on axes on which they do not depend.
    """

    shape: Shape
    ids: IntArray

    @property
    def grid(self) -> Shape:
        """The shape of `ids`."""
        return tuple(self.ids.shape)

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes on which the ids depend."""
        return tuple(axis for axis, size in enumerate(self.grid) if size > 1)


@dataclass(frozen=True, eq=False)
class Join:
    """One addition of tensors with the same channels.

    Attributes:
        node: The addition.
        result: Ids of the sum, flattened.
        operands: Ids of each operand, in the same order.
    """

    node: fx.Node
    result: IntArray
    operands: tuple[IntArray, ...]


@dataclass(frozen=True, eq=False)
class Completion:
    """Known channels of a tensor that is wanted whole: they can leave it, for the price of a copy.

    Behind a gate, `5 * gate(x)`, or in a normalisation over channels the operator is given the tensor completed by its
    constants. A depthwise convolution with known results is given the other channels of its input alone.

    Attributes:
        node: The operator.
        source: The tensor that is copied.
        whole: Ids beside which they would have to stay, flattened.
        known: Ids that can leave, in the same order.
        reason: Why they stay if they do.
    """

    node: fx.Node
    source: fx.Node
    whole: IntArray
    known: IntArray
    reason: str


Moves = list[tuple[IntArray, IntArray]]
"""Pairs of ids, and of ids that replaced them."""


@dataclass
class Facts:
    """Everything that the analysis finds out; ids index the arrays.

    Attributes:
        cells: The ids of every tensor; a list for nodes that return several.
        kind: `Kind` of every id.
        value: The number of every `CONST` id.
        maps: The table of every `MAP` id.
        used: Whether some consumer's result depends on the id.
        pinned: Id to the reason why it stays in its tensor even if its value is known.
        equal: Pairs of id arrays; the ids of a pair stay or go together.
        moved: Ids whose map was lost when their plane was moved, and the ids that stand for them since: those of the
            node that is looked at.
        boxes: Views whose kept cells have to fill a box: the id grid of each result.
        shuffles: The last view of each channel shuffle, to where it starts and where every element comes from.
        given: Ids of the model's inputs.
        joins: Operands of additions that may hold fewer channels than the sum.
        completions: Known channels that can leave tensors that are wanted whole.
        reads: For every layer which input channels of its conv group a row reads, [O, I / groups].
        notes: What dead parts stay inside a node, in its rule's words.
    """

    cells: dict[fx.Node, Cells | list[Cells]] = field(default_factory=dict)
    kind: NDArray[np.int8] = field(default_factory=lambda: np.empty(0, dtype=np.int8))
    value: FloatArray = field(default_factory=lambda: np.empty(0))
    maps: dict[int, SpatialMap] = field(default_factory=dict)
    used: BoolArray = field(default_factory=lambda: np.empty(0, dtype=bool))
    pinned: dict[int, str] = field(default_factory=dict)
    equal: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    moved: Moves = field(default_factory=list)
    boxes: dict[fx.Node, IntArray] = field(default_factory=dict)
    shuffles: dict[fx.Node, tuple[fx.Node, IntArray]] = field(default_factory=dict)
    given: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    joins: list[Join] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)
    reads: dict[fx.Node, BoolArray] = field(default_factory=dict)
    notes: list[tuple[fx.Node, str]] = field(default_factory=list)

    def new_ids(self, grid: Shape) -> IntArray:
        """Make ids for a grid: varying, unused."""
        first, count = self.kind.size, int(np.prod(grid, dtype=np.int64))
        self.kind = np.concatenate([self.kind, np.full(count, Kind.VARYING, dtype=np.int8)])
        self.value = np.concatenate([self.value, np.zeros(count)])
        self.used = np.concatenate([self.used, np.zeros(count, dtype=bool)])
        return np.arange(first, first + count, dtype=np.int64).reshape(grid)

    def of(self, node: fx.Node) -> Cells:
        """Return the cells of a node with one tensor."""
        cells = self.cells[node]
        assert isinstance(cells, Cells), f"{node} returns several tensors"
        return cells

    def set_constants(self, ids: IntArray, values: FloatArray) -> None:
        """Say that ids have these numbers; numbers that are not finite stay varying."""
        finite = np.isfinite(values)
        self.kind[ids[finite]] = Kind.CONST
        self.value[ids[finite]] = values[finite]

    def set_maps(self, ids: IntArray, planes: SpatialMap) -> None:
        """Say that ids [n] have these maps, with table [n, ...]; a flat map is a constant, others must be finite."""
        if ids.size == 0:
            return
        table = planes.table.reshape(ids.size, -1)
        flat = (table == table[:, :1]).all(axis=1)
        self.set_constants(ids[flat], table[flat, 0])
        for index in np.flatnonzero(~flat & np.isfinite(table).all(axis=1)).tolist():
            self.kind[ids[index]] = Kind.MAP
            self.maps[int(ids[index])] = SpatialMap(planes.classes, planes.table[index])

    def map_of(self, identity: int, sizes: Sequence[int]) -> SpatialMap:
        """Return the map of an id that does not vary, over a plane of these sizes."""
        if self.kind[identity] == Kind.MAP:
            return self.maps[identity]
        return constant_map(float(self.value[identity]), sizes)

    def varies(self, ids: IntArray) -> BoolArray:
        """Return which ids depend on the input."""
        return np.asarray(self.kind[ids] == Kind.VARYING)

    def is_zero(self, ids: IntArray) -> BoolArray:
        """Return which ids are the constant 0."""
        return np.asarray((self.kind[ids] == Kind.CONST) & (self.value[ids] == 0))

    def tie(self, first: IntArray, second: IntArray) -> None:
        """Say that ids stay or go together, cell by cell."""
        one, other = np.broadcast_arrays(first, second)
        self.equal.append((one.reshape(-1), other.reshape(-1)))

    def use(self, ids: IntArray, which: BoolArray | bool = True) -> None:
        """Say that ids are used (where `which` is True)."""
        chosen = ids[np.broadcast_to(which, ids.shape)]
        self.used[chosen] = True

    def pin(self, ids: IntArray, reason: str) -> None:
        """Say that ids are used and stay, with the reason."""
        self.use(ids)
        for identity in np.unique(ids).tolist():
            self.pinned.setdefault(identity, reason)
