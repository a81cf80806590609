"""Orders of rows in which rows that share columns stand next to each other.

Two rules, for two kinds of mask. Pairing level by level makes balanced groups of 2, 4, 8 ... rows: best where rows
share columns only by degree. Average linkage makes groups of any size and leaves odd rows outside: best for blocks with
strays. Both compare rows by the Jaccard index, shared columns over columns of either. Cells are counted by a float32
matrix product, exact below 2**24 columns, so the order is the same on every machine; ties go to the lowest index.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

IntArray = NDArray[np.int64]

ROWS_AT_ONCE = 4096
"""Rows compared with each other at once; more are ordered in slices, so memory stays below 0.5 GB."""

COMPARE_MACS = 5e10
"""Multiply-adds spent on one comparison of all rows (0.6 s on one AVX-512 core); beyond, columns are sampled."""

PAIRING_ROUNDS = 24
"""Rounds of pairing mutual best partners; rows still alone (many equal scores) are then paired as they stand."""


def find_orders(cells: NDArray[np.bool_], tallest: int) -> tuple[IntArray, ...]:
    """Find orders in which rows with shared columns are neighbours.

    Args:
        cells: Kept cells, no row empty, [U, K].
        tallest: Rows in the tallest tile; longer runs of like rows bring nothing.

    Returns:
        Permutations of the rows, each [U].
    """
    slices = [np.arange(start, min(start + ROWS_AT_ONCE, len(cells))) for start in range(0, len(cells), ROWS_AT_ONCE)]
    samples = [_sample_columns(cells[rows]) for rows in slices]
    paired = [rows[_order_by_pairing(sample, tallest)] for rows, sample in zip(slices, samples, strict=True)]
    linked = [rows[_order_by_linkage(sample)] for rows, sample in zip(slices, samples, strict=True)]
    return np.concatenate(paired), np.concatenate(linked)


def _sample_columns(cells: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Take evenly spaced columns, as many as may be compared, as 0.0 and 1.0."""
    rows, columns = cells.shape
    step = int(np.ceil(columns * rows**2 / COMPARE_MACS))
    return np.ascontiguousarray(cells[:, :: max(1, step)], dtype=np.float32)


def _measure_likeness(counts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute the Jaccard index of every two rows, [U, U]."""
    shared: NDArray[np.float32] = counts @ counts.T
    sizes = shared.diagonal().copy()
    either = sizes[:, None] + sizes[None, :]
    either -= shared
    np.maximum(either, 1.0, out=either)
    shared /= either
    return shared


def _order_by_linkage(counts: NDArray[np.float32]) -> IntArray:
    """Order rows as the leaves of an average-linkage tree."""
    if len(counts) < 2:
        return np.arange(len(counts))
    distance = 1.0 - _measure_likeness(counts).astype(np.float64)
    np.fill_diagonal(distance, 0.0)
    leaves: IntArray = leaves_list(linkage(squareform(distance, checks=False), "average")).astype(np.int64)
    return leaves


def _order_by_pairing(counts: NDArray[np.float32], tallest: int) -> IntArray:
    """Order rows by pairing rows, then pairs, then fours, up to the tallest tile."""
    parts = [[row] for row in range(len(counts))]
    height = 1
    while height < tallest and len(parts) > 1:
        first, second, alone = _pair_up(_measure_likeness(counts))
        parts = [parts[a] + parts[b] for a, b in zip(first, second, strict=True)] + [parts[row] for row in alone]
        counts = np.concatenate([np.maximum(counts[first], counts[second]), counts[alone]])
        height *= 2
    return np.array([row for part in parts for row in part], dtype=np.int64)


def _pair_up(likeness: NDArray[np.float32]) -> tuple[IntArray, IntArray, IntArray]:
    """Pair rows that are each other's best partner, round by round; returns firsts, seconds and an odd row left."""
    np.fill_diagonal(likeness, -1.0)
    alone = np.arange(len(likeness))
    firsts, seconds = [], []
    for _ in range(PAIRING_ROUNDS):
        if len(alone) < 2:
            break
        best = likeness.argmax(axis=1)
        me = np.arange(len(alone))
        mutual = best[best] == me
        first = me[mutual & (me < best)]
        firsts.append(alone[first])
        seconds.append(alone[best[first]])
        alone = alone[~mutual]
        likeness = likeness[np.ix_(~mutual, ~mutual)]
    pairs = len(alone) // 2 * 2
    firsts.append(alone[0:pairs:2])
    seconds.append(alone[1:pairs:2])
    return np.concatenate(firsts), np.concatenate(seconds), alone[pairs:]
