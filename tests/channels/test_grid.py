"""Grids and arrangements: which cells a cut tensor holds, and where its elements come from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fxprune.channels.grid import (
    BoolArray,
    all_cells,
    arrange,
    box_sizes,
    compress,
    even_lines,
    fill_lines,
    gather,
    project,
    spread,
)

KEPT = hnp.arrays(bool, hnp.array_shapes(min_dims=1, max_dims=3, max_side=5))


def mask(*lines: str) -> BoolArray:
    """Return rows of x (kept) and . (dead) as a bool array."""
    return np.array([[letter == "x" for letter in line] for line in lines])


def test_compress_drops_axes_without_change() -> None:
    full = np.broadcast_to(np.arange(3)[None, :, None], (2, 3, 4))
    assert compress(full).tolist() == [[[0], [1], [2]]]


@pytest.mark.parametrize(
    ("kept", "sizes"),
    [(mask("xx..", "xx.."), (2, 2)), (mask("x.x.", ".x.x"), (2, 2)), (mask("....", "...."), (0, 0))],
)
def test_box_sizes_count_lines_and_cells_of_the_fullest_line(kept: BoolArray, sizes: tuple[int, int]) -> None:
    assert box_sizes(kept) == sizes


def test_lines_with_equal_counts_are_packed() -> None:
    found = arrange(mask("x..x", "....", ".xx."))
    assert found is not None
    assert found.tolist() == [[0, 3], [9, 10]]


def test_uneven_lines_have_no_arrangement() -> None:
    assert arrange(mask("xx", "x.")) is None


def test_fill_lines_takes_the_first_dead_cells_and_leaves_empty_lines_empty() -> None:
    assert np.array_equal(fill_lines(mask(".xx.", "...x", "....")), mask(".xx.", "x..x", "...."))


@given(KEPT)
def test_even_lines_can_be_arranged_and_lose_nothing(kept: BoolArray) -> None:
    more = even_lines(kept)
    assert bool((kept <= more).all())
    found = arrange(more)
    assert found is not None
    assert sorted(found.reshape(-1)) == np.flatnonzero(more).tolist()


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=4), st.data())
def test_gather_undoes_spread(axes: list[tuple[int, bool]], data: st.DataObject) -> None:
    shape = tuple(size for size, _ in axes)
    grid = tuple(size if marked else 1 for size, marked in axes)
    kept = even_lines(data.draw(hnp.arrays(bool, grid)))
    cells = arrange(kept)
    assert cells is not None
    if cells.size:
        found = gather(spread(cells, shape, grid), shape, grid)
        assert found is not None
        assert np.array_equal(found, cells)


def test_elements_that_cut_through_a_cell_show_no_arrangement() -> None:
    elements = spread(all_cells((3, 1)), (3, 4), (3, 1))
    assert gather(elements[:, :2], (3, 4), (3, 1)) is None


def test_project_asks_for_the_operands_own_cells() -> None:
    cells = np.array([[1, 2], [7, 8]])  # rows 0 and 2, columns 1 and 2 of a grid of three by three
    found = project(cells, (3, 3), (1, 3))
    assert found is not None
    assert found.tolist() == [[1, 2]]


def test_project_refuses_lines_that_differ() -> None:
    cells = np.array([[1, 2], [6, 8]])
    assert project(cells, (3, 3), (1, 3)) is None
