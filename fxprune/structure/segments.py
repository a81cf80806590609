"""Cut an order of rows into row groups at the least cost, by dynamic programming."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Cuts:
    """The best cuts of one order, for every choice of tile heights.

    Attributes:
        order: The order of the rows, [U].
        costs: Cost of the whole order in dense cells, [choices].
        lengths: Rows in the last group of the best cut of each prefix, [choices, U + 1].
    """

    order: IntArray
    costs: NDArray[np.float64]
    lengths: IntArray

    def labels(self, choice: int) -> IntArray:
        """Return the group of each row under one choice of tile heights, [U]."""
        found = np.empty(len(self.order), dtype=np.int64)
        stop, label = len(self.order), 0
        while stop > 0:
            start = stop - int(self.lengths[choice, stop])
            found[self.order[start:stop]] = label
            stop, label = start, label + 1
        return found


def cut_order(
    cells: NDArray[np.bool_], heights: IntArray, order: IntArray, table: NDArray[np.float64], longest: int
) -> Cuts:
    """Cut an order of rows into runs, each a row group with the union of its columns, at the least total cost.

    Args:
        cells: Distinct rows, [U, K].
        heights: How many rows of the weight each distinct row stands for, [U].
        order: A permutation of the distinct rows, [U].
        table: Cost per column of a group, [choices, height].
        longest: Most distinct rows in one run.

    Returns:
        The best cuts for every choice of tile heights.
    """
    unions = _count_unions(cells[order], longest)
    ends = np.concatenate([[0], np.cumsum(heights[order])])
    best = np.zeros((len(table), len(order) + 1))
    lengths = np.zeros((len(table), len(order) + 1), dtype=np.int64)
    each = np.arange(len(table))
    for stop in range(1, len(order) + 1):
        starts = np.arange(stop - 1, max(0, stop - longest) - 1, -1)
        costs = best[:, starts] + table[:, ends[stop] - ends[starts]] * unions[starts, stop - starts - 1]
        chosen = costs.argmin(axis=1)
        best[:, stop] = costs[each, chosen]
        lengths[:, stop] = chosen + 1
    return Cuts(order, best[:, -1].copy(), lengths)


def _count_unions(cells: NDArray[np.bool_], longest: int) -> IntArray:
    """Count the columns of every run of rows, [U, longest]: entry (start, length - 1); runs past the end are 0."""
    packed = np.packbits(cells, axis=1)
    packed = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)
    counts = np.zeros((len(packed), longest), dtype=np.int64)
    runs = packed
    for length in range(1, min(longest, len(packed)) + 1):
        if length > 1:
            runs = runs[:-1] | packed[length - 1 :]
        counts[: len(runs), length - 1] = np.bitwise_count(runs).sum(axis=1, dtype=np.int64)
    return counts
