"""Cutting an order of rows: the cheapest of all cuts, for every choice of tile heights."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxprune.structure.segments import cut_order
from fxprune.structure.tiles import tile_costs

TABLE = tile_costs(((1, 0.22), (2, 0.39), (4, 0.65)), 40).table


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 70))
def test_finds_the_cheapest_of_all_cuts(seed: int, rows: int, columns: int) -> None:
    generator = np.random.default_rng(seed)
    cells = generator.random((rows, columns)) < 0.3
    heights = generator.integers(1, 4, rows)
    order = generator.permutation(rows)
    cuts = cut_order(cells, heights, order, TABLE, longest=4)
    for choice, price in enumerate(TABLE):
        costs = []
        for inner in itertools.product([False, True], repeat=rows - 1):
            runs = np.split(order, np.flatnonzero(inner) + 1)
            if max(map(len, runs)) <= 4:
                costs.append(sum(price[heights[run].sum()] * cells[run].any(axis=0).sum() for run in runs))
        assert cuts.costs[choice] == pytest.approx(min(costs))
        labels = cuts.labels(choice)
        found = sum(
            price[heights[labels == label].sum()] * cells[labels == label].any(axis=0).sum()
            for label in np.unique(labels)
        )
        assert cuts.costs[choice] == pytest.approx(found)
