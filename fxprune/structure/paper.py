"""Regroup by the rule of the paper's published code, with and without its two defects.

The rows are split in parts; each part keeps the columns in which it has most cells, as many as make the width exceed a
multiple of what every row has outside. Parts too low or without such a width become zero.

Source:
    "Coarsening the Granularity" (arXiv 2202.04736), algorithm 3, as far as its published code implements it (one pass,
    no t2, no b2). Different here: the parts come from clustering, deterministic and of equal size, not from hMETIS; and
    unless `bug_compat` is set, the columns are tested in the order in which they are taken, with fresh counters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxprune.annotation import RowGroup
from fxprune.structure.likeness import order_rows

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class PaperRule:
    """The constants of the published code, the same for every layer and model.

    Attributes:
        parts: Parts that the non-empty rows are split in.
        ratio: The width of a block exceeds this times the cells that any of its rows has outside.
        min_rows: Least rows of a block.
        bug_compat: Compute the width as the published code does: unsorted column, stale counters.
    """

    parts: int = 8
    ratio: float = 1.5
    min_rows: int = 17
    bug_compat: bool = False

    def __post_init__(self) -> None:
        if self.parts < 1 or self.min_rows < 1 or not self.ratio > 0:
            raise ValueError(f"{self} is out of range; parts and min_rows are from 1 up, ratio is above 0")


def regroup_paper(mask: BoolArray, rule: PaperRule) -> tuple[RowGroup, ...] | str:
    """Find the blocks of one layer.

    Args:
        mask: True = kept, [O, n].
        rule: Constants.

    Returns:
        The blocks as row groups with disjoint rows, or, if there is none, the reason as a sentence.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if len(rows) == 0:
        return "the mask keeps nothing: there is no block to find."
    order = rows[order_rows(mask[rows].astype(np.float64))]
    parts = sorted(np.array_split(order, rule.parts), key=len, reverse=True)
    if len(parts[0]) < rule.min_rows:
        return (
            f"{len(rows)} rows in {rule.parts} parts are {len(parts[0])} rows a part, below the {rule.min_rows} that a "
            "block of the paper's rule needs; method='vectors' groups layers of this size."
        )
    blocks = [_find_block(mask, np.sort(part), rule) for part in parts if len(part) >= rule.min_rows]
    found = tuple(block for block in blocks if block is not None)
    if not found:
        return f"in none of {rule.parts} parts is a width above {rule.ratio} times the cells that stay outside it."
    return tuple(sorted(found, key=lambda block: int(block.rows[0])))


def _find_block(mask: BoolArray, rows: IntArray, rule: PaperRule) -> RowGroup | None:
    cells = mask[rows]
    order = np.argsort(-cells.sum(axis=0), kind="stable")
    find = _find_width_with_defects if rule.bug_compat else _find_width
    width = find(cells, order, rule.ratio)
    return RowGroup(rows.astype(np.int32), np.sort(order[:width]).astype(np.int32)) if width else None


def _find_width(cells: BoolArray, order: IntArray, ratio: float) -> int:
    """Return the first width in 1 .. n - 1 above `ratio` times the cells that any row has outside; 0 if none."""
    outside = cells.sum(axis=1, keepdims=True) - np.cumsum(cells[:, order], axis=1)
    widths = np.arange(1, cells.shape[1])
    return _first(widths > ratio * outside[:, :-1].max(axis=0))


def _find_width_with_defects(cells: BoolArray, _: IntArray, ratio: float) -> int:
    """Return the width as the published code finds it: column w is counted where order[w - 1] is meant.

    At each width the code looks at one row after the other and stops at the first that fails; the rows after it do not
    count that column, now or later.
    """
    widths = np.arange(1, cells.shape[1])
    looked_at = np.ones(len(widths), dtype=np.bool_)
    for row in cells:
        left = row.sum() - np.cumsum(row[1:] & looked_at)
        looked_at = looked_at & (widths > ratio * left)
    return _first(looked_at)


def _first(passed: BoolArray) -> int:
    """Return the first width, from 1 up, that passed; 0 if none did."""
    return int(passed.argmax()) + 1 if bool(passed.any()) else 0
