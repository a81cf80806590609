"""Refill: whole rows instead of single cells. As many rows survive as the kept cells would fill, the strongest ones.

Source:
    "Coarsening the Granularity" (arXiv 2202.04736), section 3.2; its published code calls this `fillback`. Ties go to
    the lowest row here, at random there. The paper's own count, floor(nnz / n) + 1, is `parity`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxprune.structure.cells import Cells, Changed

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class RefillRule:
    """How many rows of a layer survive.

    Attributes:
        rate: Share of the remaining rows that are kept in addition, in [0, 1]: 0 is refill, 0.2 is refill+.
        parity: Count rows as the published code does: floor(nnz / n) + 1 instead of round(nnz / n).
        multiple: The number of rows is rounded up to a multiple of this, e.g. the rows of the target's tile.
    """

    rate: float = 0.0
    parity: bool = False
    multiple: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate is {self.rate}; it needs to be a share of the remaining rows, in [0, 1]")
        if self.multiple < 1:
            raise ValueError(f"multiple is {self.multiple}; it needs to be a number of rows, from 1 up")


def count_rows(nnz: int, rows: int, columns: int, rule: RefillRule) -> int:
    """Return how many of the rows survive.

    Args:
        nnz: Kept cells.
        rows: Rows of the layer, O.
        columns: Columns of the layer, n.
        rule: The count.

    Returns:
        A number in [1, O], or 0 for a layer without rows.
    """
    exact = nnz / max(1, columns)
    exact += (rows - exact) * rule.rate
    count = math.floor(exact) + 1 if rule.parity else math.floor(exact + 0.5)
    return min(rows, max(1, math.ceil(count / rule.multiple) * rule.multiple))


def score_rows(mask: BoolArray, scores: FloatArray) -> FloatArray:
    """Add up the scores of each row's kept cells.

    Args:
        mask: True = kept, [O, n].
        scores: Score of each cell [O, n], or of each row [O], which is returned as it is.

    Returns:
        Score of each row, [O].
    """
    if scores.ndim == 1:
        return scores
    total: FloatArray = np.where(mask, scores, 0.0).sum(axis=1)
    return total


def refill_rows(masks: Sequence[BoolArray], scores: Sequence[FloatArray], rule: RefillRule) -> BoolArray:
    """Choose the rows that survive, one choice for all masks given.

    Args:
        masks: True = kept, each [O, n]; several only if they are coupled, with one O and any n.
        scores: For each mask the score of each cell [O, n] or of each row [O], at least 0.
        rule: How many rows survive.

    Returns:
        True = the whole row is kept, [O].

    Raises:
        ValueError: If coupled masks have different numbers of rows.
    """
    rows = {len(mask) for mask in masks}
    if len(rows) != 1:
        raise ValueError(f"coupled masks have {sorted(rows)} rows; they need one number of rows")
    nnz, columns = sum(int(mask.sum()) for mask in masks), sum(mask.shape[1] for mask in masks)
    total = np.sum([score_rows(mask, score) for mask, score in zip(masks, scores, strict=True)], axis=0)
    count = count_rows(nnz, len(masks[0]), columns, rule)
    kept = np.zeros(len(masks[0]), dtype=np.bool_)
    kept[np.argsort(-total, kind="stable")[:count]] = True
    return kept


def refill_layers(layers: Sequence[Cells], rule: RefillRule, coupled: Sequence[Sequence[int]] = ()) -> list[Changed]:
    """Refill every layer.

    Args:
        layers: All layers.
        rule: How many rows survive.
        coupled: Sets of layers, by index, that keep the same rows; a layer is in at most one set.

    Returns:
        The new masks, one a layer.
    """
    alone = set(range(len(layers))) - {index for members in coupled for index in members}
    changed: dict[int, Changed] = {}
    for members in [*coupled, *([index] for index in alone)]:
        kept = refill_rows([layers[index].mask for index in members], [layers[index].scores for index in members], rule)
        for index in members:
            changed[index] = Changed(np.repeat(kept[:, None], layers[index].mask.shape[1], axis=1))
    return [changed[index] for index in range(len(layers))]
