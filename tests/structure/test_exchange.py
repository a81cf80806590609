"""Moving and swapping rows between groups: the cost falls, and where it stops no single step helps."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fxprune.structure.exchange import LEAST_GAIN, exchange_rows
from fxprune.structure.tiles import tile_costs

PRICE = tile_costs(((1, 0.22), (2, 0.39), (4, 0.65), (8, 0.85)), 64).table[-1]


def count_cost(cells: NDArray[np.bool_], heights: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Add up the cost of all groups from scratch."""
    chosen = [labels == label for label in np.unique(labels)]
    return float(sum(PRICE[heights[rows].sum()] * cells[rows].any(axis=0).sum() for rows in chosen))


@st.composite
def grouped_rows(draw: st.DrawFn) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = draw(st.integers(2, 12))
    cells = generator.random((rows, draw(st.integers(1, 30)))) < 0.3
    cells[:, 0] = True  # a distinct row keeps at least one cell
    return cells, generator.integers(1, draw(st.integers(2, 4)), rows), generator.integers(0, 5, rows)


@given(grouped_rows())
def test_cost_falls_to_a_local_minimum(drawn: tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]) -> None:
    cells, heights, labels = drawn
    found = exchange_rows(cells, heights, labels, PRICE)
    cost = count_cost(cells, heights, found)
    assert cost <= count_cost(cells, heights, labels) + 1e-6
    assert sorted(set(found.tolist())) == list(range(int(found.max()) + 1))
    for row, label in itertools.product(range(len(cells)), range(int(found.max()) + 1)):
        moved = found.copy()
        moved[row] = label
        assert count_cost(cells, heights, moved) > cost - LEAST_GAIN - 1e-6
    for row, other in itertools.combinations(range(len(cells)), 2):
        if heights[row] != heights[other]:
            continue
        swapped = found.copy()
        swapped[[row, other]] = found[[other, row]]
        assert count_cost(cells, heights, swapped) > cost - LEAST_GAIN - 1e-6


def test_puts_two_strayed_rows_back() -> None:
    cells = np.zeros((16, 40), dtype=bool)
    cells[:8, :15] = True
    cells[8:, 20:35] = True
    cells[np.arange(16), np.arange(16)[::-1]] = True  # rows differ a little
    labels = np.repeat([0, 1], 8)
    labels[[3, 12]] = labels[[12, 3]]
    assert exchange_rows(cells, np.ones(16, dtype=np.int64), labels, PRICE).tolist() == [0] * 8 + [1] * 8
