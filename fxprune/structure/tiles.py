"""What a row group of a given height costs to run.

A kernel runs a row group in tiles of fixed heights that share its column list. A tile of height h runs at E(h) of the
dense rate, so it costs h / E(h) dense cells per column, whether its rows are all there or padded with zeros. A group of
any height is tiled as cheaply as the tile heights in use allow: 24 rows are 16 + 8, or one padded tile of 32.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fxprune.annotation import RowGroupPattern

Efficiency = tuple[tuple[int, float], ...]
"""Pairs (tile height in rows, rate of its kernel as a share of the dense rate), heights strictly increasing."""

HEIGHTS_PER_LAYER = 3
"""Most tile heights tried together in one layer, unless all are used; keeps the number of combinations small."""

SPARE_HEIGHT_COST = 0.01
"""Cost of each tile height after the first, as a share of the layer: one more kernel body to start and to cache."""


@dataclass(frozen=True, eq=False)
class TileCosts:
    """Cost of every group height under every choice of tile heights.

    Attributes:
        table: Dense cells per column of a group, [choices, height from 0 up]; the last choice uses all tile heights.
        weights: Factor on a layer's cost for each choice, above 1 for several tile heights, [choices].
    """

    table: NDArray[np.float64]
    weights: NDArray[np.float64]


def check_efficiency(efficiency: Efficiency) -> None:
    """Check that the heights increase from 1 up and that every rate is positive.

    Args:
        efficiency: Pairs (tile height in rows, share of the dense rate).

    Raises:
        ValueError: If the table is empty, out of order or holds a rate that is not positive and finite.
    """
    heights = [height for height, _ in efficiency]
    if not heights or heights[0] < 1 or any(b <= a for a, b in itertools.pairwise(heights)):
        raise ValueError(f"efficiency has heights {heights}; it needs at least one, from 1 up, strictly increasing")
    if not all(0 < rate < float("inf") for _, rate in efficiency):
        raise ValueError(f"efficiency {efficiency} has a rate that is not positive and finite")


@lru_cache(maxsize=64)
def tile_costs(efficiency: Efficiency, rows: int) -> TileCosts:
    """Price every group height up to `rows`.

    Args:
        efficiency: Pairs (tile height in rows, share of the dense rate).
        rows: Tallest height needed.

    Returns:
        The cheapest tiling of each height for each choice of tile heights.
    """
    check_efficiency(efficiency)
    count = len(efficiency)
    sizes = [*range(1, min(HEIGHTS_PER_LAYER, count - 1) + 1), count]
    choices = [choice for size in sizes for choice in itertools.combinations(range(count), size)]
    price = np.full((len(choices), count), np.inf)
    for index, choice in enumerate(choices):
        price[index, choice] = [efficiency[tile][0] / efficiency[tile][1] for tile in choice]
    heights = np.array([height for height, _ in efficiency])
    table = np.zeros((len(choices), rows + 1))
    for height in range(1, rows + 1):
        table[:, height] = (table[:, np.maximum(0, height - heights)] + price).min(axis=1)
    weights = np.array([1 + SPARE_HEIGHT_COST * (len(choice) - 1) for choice in choices])
    table.setflags(write=False)
    weights.setflags(write=False)
    return TileCosts(table, weights)


def predict_cost(pattern: RowGroupPattern, efficiency: Efficiency) -> float:
    """Predict what a pattern costs to run, in dense cells: stored cells over the efficiency of their tiles.

    Args:
        pattern: The row groups of one weight.
        efficiency: Pairs (tile height in rows, share of the dense rate).

    Returns:
        Cells of a dense weight that take as long; divided by O * K it is the predicted share of the dense time.
    """
    tallest = max((group.height for group in pattern.groups), default=0)
    price = tile_costs(efficiency, tallest).table[-1]
    return float(sum(price[group.height] * group.columns.size for group in pattern.groups))
