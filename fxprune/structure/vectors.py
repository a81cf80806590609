"""Regroup by a budget: rows in groups of equal height, each group with the columns that hold most score.

The unit of choice is a vector, one column (or run of columns) of one row group. From rows ordered by likeness, two
steps alternate: take the best vectors within the budget; give every row to the group whose columns hold most of its
score, group sizes fixed. Neither step can lose score. Widths are whole tiles of columns from the start.

Scores are whole numbers whose sums stay below 2**53, so every sum is exact, in any order: the result is the same on
every machine and with any number of threads. Ties go to the lowest index.

Source:
    method.md, section 5.3, of this project. Vector-wise sparsity by row clustering and assignment is known from OVW
    (NeurIPS 2022) and from shuffled blocks (NeurIPS 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fxprune.structure.likeness import EXACT_BITS, round_scores

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

ASSIGNED_AT_ONCE = 512
"""Rows whose groups are exchanged with each other at once; an assignment costs their third power."""


@dataclass(frozen=True, eq=False)
class Sheet:
    """Rows that may share groups (all rows of one conv group of one layer), with the order they start from.

    Attributes:
        scores: Score of each cell, at least 0, 0 where pruned; whole numbers, [R, n].
        order: A permutation of the rows with like rows together, [R].
        unit: Columns of one unit; the last may be shorter.
        tile: Columns of one tile; groups are whole tiles wide.
    """

    scores: FloatArray
    order: IntArray
    unit: int
    tile: int


@dataclass(frozen=True, eq=False)
class Grouping:
    """The row groups of one sheet.

    Attributes:
        labels: Group of each row, [R].
        kept: Columns of each group, [G, n].
    """

    labels: IntArray
    kept: BoolArray


@dataclass(frozen=True, eq=False)
class _Tiles:
    """What can be chosen: tiles of the best units of each group, best first.

    Attributes:
        ranks: For each group its units, best first, [G, units].
        value: Score of each tile, [G, tiles].
        cells: Cells of each tile, [G, tiles].
        units_per_tile: Units in one tile.
    """

    ranks: IntArray
    value: FloatArray
    cells: FloatArray
    units_per_tile: int


def make_exact(scores: Sequence[FloatArray]) -> list[FloatArray]:
    """Round the scores of layers that share a budget to whole numbers on one scale, whose sums are exact.

    Args:
        scores: Each [R, n], at least 0.
    """
    cells = sum(score.size for score in scores)
    largest = max((float(score.max(initial=0.0)) for score in scores), default=0.0)
    bits = EXACT_BITS - 1 - max(1, cells).bit_length()
    return [round_scores(score, bits) if largest == 0 else np.rint(score * (2.0**bits / largest)) for score in scores]


def find_vectors(
    sheets: Sequence[Sheet], height: Sequence[int], budget: int, *, iterations: int, tolerance: float
) -> list[Grouping]:
    """Group the rows of sheets that share one budget.

    Args:
        sheets: At least one.
        height: Rows of a group, for each sheet; the last group of a sheet may be lower.
        budget: Cells that may be stored in all sheets together; at least one tile is, whatever the budget.
        iterations: Most rounds of selection and assignment after the first selection.
        tolerance: Least growth of the captured score, as a share, for another round.

    Returns:
        One grouping a sheet.
    """
    groupings = [_start(sheet, rows) for sheet, rows in zip(sheets, height, strict=True)]
    groupings = _select(sheets, groupings, budget)
    best = capture(sheets, groupings)
    for _ in range(iterations):
        moved = [_assign(sheet, grouping) for sheet, grouping in zip(sheets, groupings, strict=True)]
        moved = _select(sheets, moved, budget)
        found = capture(sheets, moved)
        if found <= best * (1 + tolerance):
            break
        groupings, best = moved, found
    return groupings


def select_once(sheet: Sheet, height: int, budget: int) -> float:
    """Return the score that the starting groups of a height capture within a budget: quick, to compare heights.

    Args:
        sheet: The rows.
        height: Rows of a group.
        budget: Cells that may be stored.
    """
    return capture([sheet], _select([sheet], [_start(sheet, height)], budget))


def capture(sheets: Sequence[Sheet], groupings: Sequence[Grouping]) -> float:
    """Return the score inside the groups."""
    return sum(
        float(np.where(grouping.kept[grouping.labels], sheet.scores, 0.0).sum())
        for sheet, grouping in zip(sheets, groupings, strict=True)
    )


def _start(sheet: Sheet, height: int) -> Grouping:
    """Cut the order every `height` rows; no columns yet."""
    rows, columns = sheet.scores.shape
    labels = np.empty(rows, dtype=np.int64)
    labels[sheet.order] = np.arange(rows) // height
    return Grouping(labels, np.zeros((-(-rows // height), columns), dtype=np.bool_))


def _select(sheets: Sequence[Sheet], groupings: Sequence[Grouping], budget: int) -> list[Grouping]:
    """Give the groups of all sheets the tiles with most score a cell, within one budget."""
    tiles = [_find_tiles(sheet, grouping) for sheet, grouping in zip(sheets, groupings, strict=True)]
    value = np.concatenate([item.value.ravel() for item in tiles])
    cells = np.concatenate([item.cells.ravel() for item in tiles])
    order = np.argsort(-value / cells, kind="stable")
    order = order[value[order] > 0]
    taken = order[: max(1, int(np.searchsorted(np.cumsum(cells[order]), budget, side="right")))]
    chosen = np.zeros(len(value), dtype=np.bool_)
    chosen[taken] = True
    ends = np.cumsum([item.value.size for item in tiles])[:-1]
    parts = np.split(chosen, ends)
    return [
        replace(grouping, kept=_keep_columns(sheet, item, part.reshape(item.value.shape)))
        for sheet, grouping, item, part in zip(sheets, groupings, tiles, parts, strict=True)
    ]


def _find_tiles(sheet: Sheet, grouping: Grouping) -> _Tiles:
    """Rank the units of each group and cut the ranks into tiles."""
    by_group = np.argsort(grouping.labels, kind="stable")
    starts = np.searchsorted(grouping.labels[by_group], np.arange(len(grouping.kept)))
    columns = sheet.scores.shape[1]
    units = np.arange(0, columns, sheet.unit)
    widths = np.diff(np.append(units, columns))
    sums = np.add.reduceat(np.add.reduceat(sheet.scores[by_group], starts, axis=0), units, axis=1)
    heights = np.diff(np.append(starts, len(by_group))).astype(np.float64)
    ranks = np.argsort(-sums / widths, axis=1, kind="stable")
    per_tile = max(1, sheet.tile // sheet.unit)
    cuts = np.arange(0, len(units), per_tile)
    return _Tiles(
        ranks=ranks,
        value=np.add.reduceat(np.take_along_axis(sums, ranks, axis=1), cuts, axis=1),
        cells=np.add.reduceat(widths[ranks], cuts, axis=1) * heights[:, None],
        units_per_tile=per_tile,
    )


def _keep_columns(sheet: Sheet, tiles: _Tiles, chosen: BoolArray) -> BoolArray:
    """Return the columns of the chosen tiles, [G, n]."""
    groups, units = tiles.ranks.shape
    kept = np.zeros((groups, units), dtype=np.bool_)
    ranked = np.repeat(chosen, tiles.units_per_tile, axis=1)[:, :units]
    np.put_along_axis(kept, tiles.ranks, ranked, axis=1)
    return np.repeat(kept, sheet.unit, axis=1)[:, : sheet.scores.shape[1]]


def _assign(sheet: Sheet, grouping: Grouping) -> Grouping:
    """Give every row to the group that holds most of its score, group sizes fixed."""
    from scipy.optimize import linear_sum_assignment  # 15 MB of memory that exact masks do without

    gain = sheet.scores @ grouping.kept.T.astype(np.float64)
    labels = grouping.labels.copy()
    by_group = np.argsort(labels, kind="stable")
    for start in range(0, len(labels), ASSIGNED_AT_ONCE):
        rows = by_group[start : start + ASSIGNED_AT_ONCE]
        places = labels[rows]
        chosen, place = linear_sum_assignment(gain[np.ix_(rows, places)], maximize=True)
        labels[rows[chosen]] = places[place]
    return Grouping(labels, grouping.kept)
