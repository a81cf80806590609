"""Improve row groups by moving single rows and by swapping two rows between groups, while that saves cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]

EXCHANGE_MACS = 3e10
"""Multiply-adds spent on one layer (0.4 s on one AVX-512 core); larger layers get fewer rounds, the largest none."""

MACS_PER_PAIR = 1000
"""What the arithmetic on one pair of rows costs besides the products, as multiply-adds; measured at U = 2048."""

LEAST_GAIN = 0.5
"""Least gain of one step in dense cells; above what float32 loses on a cost below a million cells."""

MOST_ROUNDS = 16
"""Rounds after which the gain is below 0.1 % on every mask tried."""


@dataclass(frozen=True, eq=False)
class _Groups:
    """Groups of distinct rows, with what every row adds to every group.

    Attributes:
        height: Rows of the weight in each group, [G].
        width: Columns of each group, [G].
        cost: Cost of each group, [G].
        freed: Columns that leave a row's group with it, [U].
        missing: Columns that each group would gain with each row, [U, G].
        returned: Entry (r, s): columns that leave with r and come back with s, [U, U].
    """

    height: IntArray
    width: Float32Array
    cost: FloatArray
    freed: Float32Array
    missing: Float32Array
    returned: Float32Array


def exchange_rows(cells: NDArray[np.bool_], heights: IntArray, labels: IntArray, price: FloatArray) -> IntArray:
    """Move and swap rows between groups as long as the total cost falls.

    Args:
        cells: Distinct rows, [U, K].
        heights: How many rows of the weight each distinct row stands for, [U].
        labels: The group of each distinct row, [U].
        price: Cost per column of a group, by its height, [sum of heights + 1].

    Returns:
        New labels from 0 up, [U]; their cost is never above that of the old ones.
    """
    rounds = min(MOST_ROUNDS, int(EXCHANGE_MACS / (len(cells) ** 2 * (2 * cells.shape[1] + MACS_PER_PAIR))))
    if rounds == 0:
        return np.unique(labels, return_inverse=True)[1]
    values = cells.astype(np.float32)
    for _ in range(rounds):
        labels = np.unique(labels, return_inverse=True)[1]
        groups = _measure_groups(values, heights, labels, price)
        moves = _price_moves(groups, heights, labels, price)
        swaps = _price_swaps(groups, heights, labels, price)
        changed = _apply_best(labels, moves, swaps)
        if np.array_equal(changed, labels):
            break
        labels = changed
    return np.unique(labels, return_inverse=True)[1]


def _measure_groups(values: NDArray[np.float32], heights: IntArray, labels: IntArray, price: FloatArray) -> _Groups:
    """Count what each row shares with each group; the float32 products are exact counts."""
    by_group = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_group], np.arange(int(labels.max()) + 1))
    owners = np.add.reduceat(values[by_group], starts, axis=0)
    alone = values * (owners[labels] == 1)
    held = (owners > 0).astype(np.float32)
    height = np.add.reduceat(heights[by_group], starts)
    width = held.sum(axis=1)
    return _Groups(
        height=height,
        width=width,
        cost=price[height] * width,
        freed=alone.sum(axis=1),
        missing=values.sum(axis=1)[:, None] - values @ held.T,
        returned=alone @ values.T,
    )


def _price_moves(groups: _Groups, heights: IntArray, labels: IntArray, price: FloatArray) -> FloatArray:
    """Price moving row r to group g: change of total cost, [U, G]; staying costs 0."""
    left = price[groups.height[labels] - heights] * (groups.width[labels] - groups.freed) - groups.cost[labels]
    taller = np.minimum(groups.height[None, :] + heights[:, None], len(price) - 1)
    joined = price[taller] * (groups.width[None, :] + groups.missing) - groups.cost[None, :]
    change: FloatArray = left[:, None] + joined
    change[np.arange(len(labels)), labels] = 0.0
    return change


def _price_swaps(groups: _Groups, heights: IntArray, labels: IntArray, price: FloatArray) -> Float32Array:
    """Price swapping rows r and s of equal height: change of total cost, [U, U]; 0 within one group."""
    change = groups.missing[:, labels].T + groups.returned
    change += (groups.width[labels] - groups.freed)[:, None]
    change *= price[groups.height[labels]].astype(np.float32)[:, None]
    change -= groups.cost[labels].astype(np.float32)[:, None]
    change = change + change.T
    change[labels[:, None] == labels[None, :]] = 0.0
    if heights.min() != heights.max():
        change[heights[:, None] != heights[None, :]] = 0.0
    return change


def _apply_best(labels: IntArray, moves: FloatArray, swaps: Float32Array) -> IntArray:
    """Apply each row's best step, best first, at most one a group so that the prices stay true."""
    rows = np.arange(len(labels))
    to_group, to_row = moves.argmin(axis=1), swaps.argmin(axis=1)
    gains = np.concatenate([moves[rows, to_group], swaps[rows, to_row]])
    changed = labels.copy()
    touched: set[int] = set()
    for step in np.argsort(gains, kind="stable"):
        if gains[step] > -LEAST_GAIN:
            break
        row = int(step) % len(labels)
        swap = step >= len(labels)
        source, goal = int(labels[row]), int(labels[to_row[row]] if swap else to_group[row])
        if source in touched or goal in touched:
            continue
        touched |= {source, goal}
        changed[row] = goal
        if swap:
            changed[to_row[row]] = source
    return changed
