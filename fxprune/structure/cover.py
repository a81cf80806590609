"""Cover a mask exactly by row groups at the least predicted cost.

Every True cell is covered, every row is in at most one group, and no group crosses a conv group. The cost of a group is
its stored cells over the efficiency of its tiles (`tiles`), so filling a few cells is right where a taller kernel gains
more than they cost. The search, on each conv group:

1. equal rows become one row with a height; structured masks are all but solved by this;
2. rows that share columns are brought together (`ordering`, two rules);
3. each order is cut at the least cost (`segments`), for every choice of few tile heights at once;
4. rows are moved and swapped while that saves cost (`exchange`).

Source:
    method.md, section 6 ("cover"), and kernels.md, section 2.2 (the cost), both of this project. Leaf orders of
    clusterings are usual for vector-wise sparsity (OVW, NeurIPS 2022); the exact cut of an order is our own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxprune.annotation import RowGroup, RowGroupPattern
from fxprune.structure.exchange import exchange_rows
from fxprune.structure.ordering import find_orders
from fxprune.structure.segments import Cuts, cut_order
from fxprune.structure.tiles import Efficiency, TileCosts, tile_costs

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Block:
    """The distinct rows of one conv group that keep at least one cell.

    Attributes:
        members: Rows of the weight behind each distinct row, first members increasing.
        cells: Distinct rows, [U, K].
        heights: Number of members of each, [U].
    """

    members: tuple[IntArray, ...]
    cells: NDArray[np.bool_]
    heights: IntArray


def cover_rows(mask: NDArray[np.bool_], conv_groups: int, efficiency: Efficiency) -> RowGroupPattern:
    """Find the row groups that cover a mask at the least sum of stored cells over efficiency.

    Args:
        mask: True = kept, the 2-D view of a weight, [O, K].
        conv_groups: Number of conv groups; row r belongs to conv group r // (O / conv_groups).
        efficiency: Pairs (tile height in rows, rate of its kernel as a share of the dense rate), heights increasing.

    Returns:
        A pattern whose groups are ordered by their first row. Rows without a kept cell are in no group.

    Raises:
        ValueError: If the mask is not a 2-D bool array, its rows do not divide into the conv groups, or the
            efficiency table is malformed.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"mask is {mask.dtype} with shape {mask.shape}; it needs to be bool with two axes")
    if conv_groups < 1 or mask.shape[0] % conv_groups:
        raise ValueError(f"mask has {mask.shape[0]} rows, which do not divide into {conv_groups} conv groups")
    rows = mask.shape[0] // conv_groups
    prices = tile_costs(efficiency, rows)
    blocks = [_find_block(mask[start : start + rows], start) for start in range(0, mask.shape[0], rows or 1)]
    blocks = [block for block in blocks if block.members]
    cuts = [_find_cuts(block, prices.table, efficiency[-1][0]) for block in blocks]
    choice = _choose_heights(blocks, cuts, prices)
    groups = [
        group
        for block, options in zip(blocks, cuts, strict=True)
        for group in _build_groups(block, options, choice, prices.table[choice])
    ]
    return RowGroupPattern((mask.shape[0], mask.shape[1]), tuple(sorted(groups, key=lambda group: int(group.rows[0]))))


def _find_block(mask: NDArray[np.bool_], start: int) -> _Block:
    """Gather equal rows of one conv group whose first row is `start`."""
    members: dict[bytes, list[int]] = {}
    packed = np.packbits(mask, axis=1)
    for row in np.flatnonzero(mask.any(axis=1)):
        members.setdefault(packed[row].tobytes(), []).append(int(row))
    cells = mask[[rows[0] for rows in members.values()]] if members else mask[:0]
    heights = np.array([len(rows) for rows in members.values()], dtype=np.int64)
    return _Block(tuple(np.array(rows, dtype=np.int64) + start for rows in members.values()), cells, heights)


def _find_cuts(block: _Block, table: NDArray[np.float64], tallest: int) -> tuple[Cuts, ...]:
    """Cut every order of a block."""
    orders = find_orders(block.cells, tallest)
    return tuple(cut_order(block.cells, block.heights, order, table, tallest) for order in orders)


def _price_whole(block: _Block, table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Price all rows of a block as one group, [choices]."""
    whole: NDArray[np.float64] = table[:, int(block.heights.sum())] * int(block.cells.any(axis=0).sum())
    return whole


def _choose_heights(blocks: list[_Block], cuts: list[tuple[Cuts, ...]], prices: TileCosts) -> int:
    """Choose the tile heights of the layer: least cost, with a small charge for each height after the first."""
    total = np.zeros(len(prices.weights))
    for block, options in zip(blocks, cuts, strict=True):
        total += np.min([*(option.costs for option in options), _price_whole(block, prices.table)], axis=0)
    return int(np.argmin(total * prices.weights))


def _build_groups(block: _Block, options: tuple[Cuts, ...], choice: int, price: NDArray[np.float64]) -> list[RowGroup]:
    """Build the row groups of one block: the best of its cuts, improved, or the whole block if that is no dearer."""
    best = min(options, key=lambda option: float(option.costs[choice]))
    labels = best.labels(choice)
    if len(np.unique(labels)) < len(labels):
        labels = exchange_rows(block.cells, block.heights, labels, price)
    groups = _merge_equal([_build_group(block, labels == label) for label in np.unique(labels)])
    whole = _build_group(block, np.ones(len(labels), dtype=bool))
    cost = sum(price[group.height] * group.columns.size for group in groups)
    return [whole] if price[whole.height] * whole.columns.size <= cost else groups


def _build_group(block: _Block, chosen: NDArray[np.bool_]) -> RowGroup:
    """Build one row group from distinct rows."""
    rows = np.sort(np.concatenate([block.members[index] for index in np.flatnonzero(chosen)]))
    columns = np.flatnonzero(block.cells[chosen].any(axis=0))
    return RowGroup(rows.astype(np.int32), columns.astype(np.int32))


def _merge_equal(groups: list[RowGroup]) -> list[RowGroup]:
    """Merge groups with one and the same column list."""
    rows: dict[bytes, list[RowGroup]] = {}
    for group in groups:
        rows.setdefault(group.columns.tobytes(), []).append(group)
    return [
        RowGroup(np.sort(np.concatenate([group.rows for group in same])), same[0].columns) for same in rows.values()
    ]
