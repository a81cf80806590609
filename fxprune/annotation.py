"""Data types that say which cells of a weight exist: masks and row-group patterns on graph nodes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

META_KEY = "fxprune"
"""The key of `node.meta` under which a node that owns a weight carries its `WeightAnnotation`."""

IndexArray = NDArray[np.int32]


def _check_increasing(values: IndexArray, what: str) -> None:
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"RowGroup.{what} has shape {values.shape}; it needs at least one index on one axis")
    if values[0] < 0 or bool(np.any(values[1:] <= values[:-1])):
        raise ValueError(f"RowGroup.{what} is not strictly increasing from 0 up: {values[:8].tolist()} ...")


@dataclass(frozen=True, eq=False)
class RowGroup:
    """Rows that share one column list; every cell of rows x columns is stored.

    Invariants (checked when built): both arrays are int32, non-empty and strictly increasing.

    Attributes:
        rows: Row indices of the 2-D view, [R].
        columns: Column indices of the 2-D view (input channel within the conv group, kd, kh, kw flattened), [C].
    """

    rows: IndexArray
    columns: IndexArray

    def __post_init__(self) -> None:
        for what in ("rows", "columns"):
            values = np.ascontiguousarray(getattr(self, what), dtype=np.int32)
            object.__setattr__(self, what, values)
            _check_increasing(values, what)

    @property
    def height(self) -> int:
        """Number of rows."""
        return int(self.rows.size)

    @property
    def stored(self) -> int:
        """Number of stored cells, rows times columns."""
        return int(self.rows.size) * int(self.columns.size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RowGroup):
            return NotImplemented
        return np.array_equal(self.rows, other.rows) and np.array_equal(self.columns, other.columns)

    def __hash__(self) -> int:
        return hash((self.rows.tobytes(), self.columns.tobytes()))


@dataclass(frozen=True)
class RowGroupPattern:
    """The row groups of one weight seen as the 2-D view [O, I/groups * kd * kh * kw].

    Invariants (checked when built): indices lie inside `shape`; rows of different groups are disjoint.
    A row in no group has no stored cell. That the pattern covers a mask is checked by `verify`.

    Attributes:
        shape: Rows and columns of the 2-D view.
        groups: The row groups, in the order in which a kernel will run them.
    """

    shape: tuple[int, int]
    groups: tuple[RowGroup, ...]

    def __post_init__(self) -> None:
        seen = np.zeros(self.shape[0], dtype=bool)
        for index, group in enumerate(self.groups):
            if group.rows[-1] >= self.shape[0] or group.columns[-1] >= self.shape[1]:
                raise ValueError(f"RowGroupPattern: group {index} reaches outside the shape {self.shape}")
            if bool(seen[group.rows].any()):
                raise ValueError(f"RowGroupPattern: group {index} shares a row with an earlier group")
            seen[group.rows] = True

    @cached_property
    def stored(self) -> int:
        """Number of stored cells over all groups."""
        return sum(group.stored for group in self.groups)

    @property
    def density(self) -> float:
        """Stored cells over all cells, in [0, 1]."""
        return self.stored / max(1, self.shape[0] * self.shape[1])

    def fill(self, nnz: int) -> float:
        """Stored cells over the mask's True cells; 1 means that nothing was added."""
        return self.stored / max(1, nnz)

    def heights(self) -> dict[int, int]:
        """Count the groups of each height, tallest first."""
        counts: dict[int, int] = {}
        for group in self.groups:
            counts[group.height] = counts.get(group.height, 0) + 1
        return dict(sorted(counts.items(), reverse=True))

    def covered(self) -> NDArray[np.bool_]:
        """Return the stored cells as a bool array [O, K]."""
        cells = np.zeros(self.shape, dtype=bool)
        for group in self.groups:
            cells[np.ix_(group.rows, group.columns)] = True
        return cells


@dataclass(frozen=True, eq=False)
class WeightAnnotation:
    """What is known of the weight of one node; lives in `node.meta["fxprune"]` and nowhere else.

    Invariants (checked by `verify`): the mask is bool with the weight's shape; a pattern covers every True cell; the
    weight is zero where the mask is False, unless there are scores.

    Attributes:
        name: Name of the weight in the user's model, e.g. "layer1.0.conv1.weight".
        mask: True = kept; the weight's shape, on the CPU.
        pattern: Row groups of the 2-D view, once `group_rows` has run.
        scores: What each cell is worth, the mask's shape, as long as refill or regroup has yet to change the mask; the
            weight still has its pruned values, for some of them may come back. None: the mask is final.
    """

    name: str
    mask: torch.Tensor
    pattern: RowGroupPattern | None = None
    scores: torch.Tensor | None = None

    @cached_property
    def nnz(self) -> int:
        """Number of kept weights."""
        return int(self.mask.count_nonzero())

    @property
    def density(self) -> float:
        """Kept weights over all weights, in [0, 1]."""
        return self.nnz / max(1, self.mask.numel())
