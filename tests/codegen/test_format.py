"""The packed weight: every cell at its place, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fxprune.annotation import RowGroup, RowGroupPattern
from fxprune.codegen.format import in_order, is_scattered, pack, packed_lanes, padded_stored

HEIGHTS = (1, 2, 4, 8, 16, 32, 64)


@st.composite
def draw_patterns(draw: st.DrawFn) -> RowGroupPattern:
    """Draw disjoint row groups in any order; some rows may be in none."""
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 12))
    order = draw(st.permutations(range(rows)))
    groups, start = [], 0
    while start < rows:
        height = draw(st.integers(1, rows - start))
        if draw(st.booleans()):
            chosen = draw(st.sets(st.integers(0, columns - 1), min_size=1))
            groups.append(RowGroup(np.array(sorted(order[start : start + height])), np.array(sorted(chosen))))
        start += height
    return RowGroupPattern((rows, columns), tuple(groups))


def draw_weight(pattern: RowGroupPattern) -> NDArray[np.float32]:
    """Draw a weight without any zero."""
    cells: NDArray[np.float32] = np.random.default_rng(0).uniform(1, 2, pattern.shape).astype(np.float32)
    return cells


@given(draw_patterns(), st.sampled_from(HEIGHTS))
def test_unpack_returns_the_covered_weight(pattern: RowGroupPattern, height: int) -> None:
    weight = draw_weight(pattern)
    unpacked = pack(weight, pattern, height).unpack()
    assert np.array_equal(unpacked, np.where(pattern.covered(), weight, 0))


@given(draw_patterns(), st.sampled_from(HEIGHTS), st.integers(1, 13))
def test_parts_hold_every_block_once_and_only_their_columns(
    pattern: RowGroupPattern, height: int, part_columns: int
) -> None:
    weight = draw_weight(pattern)
    whole, packed = pack(weight, pattern, height), pack(weight, pattern, height, part_columns)
    assert packed.parts == -(-pattern.shape[1] // part_columns)
    assert np.array_equal(packed.unpack(), whole.unpack())
    assert np.array_equal(packed.rows, np.tile(whole.rows, packed.parts))
    assert np.array_equal(packed.count, np.tile(whole.count, packed.parts))
    assert np.array_equal(packed.over_parts(packed.length), whole.length)
    for number, (begin, length) in enumerate(zip(packed.begin, packed.length, strict=True)):
        part = number // (packed.blocks // packed.parts)
        assert bool((packed.columns[begin : begin + length] // part_columns == part).all())


@given(draw_patterns(), st.sampled_from(HEIGHTS))
def test_every_output_row_is_in_one_block(pattern: RowGroupPattern, height: int) -> None:
    packed = pack(draw_weight(pattern), pattern, height)
    lanes = packed.rows.reshape(packed.blocks, height)
    assert sorted(packed.rows[packed.rows >= 0].tolist()) == list(range(pattern.shape[0]))
    assert np.array_equal((lanes >= 0).sum(axis=1), packed.count)
    assert bool((packed.count > 0).all()), "a block without rows is wasted work"
    assert bool((np.diff((lanes < 0).astype(int), axis=1) >= 0).all()), "zero rows come last"


@given(draw_patterns(), st.sampled_from(HEIGHTS))
def test_sizes_are_known_without_packing(pattern: RowGroupPattern, height: int) -> None:
    packed = pack(draw_weight(pattern), pattern, height)
    assert packed.stored == padded_stored(pattern, height) >= pattern.stored
    assert packed.rows.size == packed_lanes(pattern, height)
    assert padded_stored(pattern, 1) == pattern.stored


@given(draw_patterns(), st.sampled_from(HEIGHTS))
def test_blocks_lie_inside_the_arrays(pattern: RowGroupPattern, height: int) -> None:
    packed = pack(draw_weight(pattern), pattern, height)
    assert bool((packed.begin + packed.length <= packed.columns.size).all())
    assert bool((packed.base + packed.length * height <= packed.values.size).all())
    arrays = (packed.columns, packed.begin, packed.length, packed.base, packed.rows, packed.count)
    assert {array.dtype for array in arrays} == {np.dtype(np.int32)}
    assert packed.values.dtype == np.float32


@given(draw_patterns(), st.sampled_from(HEIGHTS))
def test_per_lane_follows_the_rows(pattern: RowGroupPattern, height: int) -> None:
    packed = pack(draw_weight(pattern), pattern, height)
    spread = packed.per_lane(np.arange(1, pattern.shape[0] + 1, dtype=np.float32))
    assert np.array_equal(spread, packed.rows + 1), "zero rows are -1 in `rows` and get 0"
    assert spread.dtype == np.float32


def test_a_tall_group_shares_its_column_list() -> None:
    pattern = RowGroupPattern((7, 9), (RowGroup(np.arange(7, dtype=np.int32), np.array([1, 4, 8])),))
    packed = pack(draw_weight(pattern), pattern, 4)
    assert packed.blocks == 2
    assert packed.columns.tolist() == [1, 4, 8]
    assert packed.begin.tolist() == [0, 0]
    assert packed.base.tolist() == [0, 12]
    assert packed.count.tolist() == [4, 3]
    assert packed.rows.tolist() == [0, 1, 2, 3, 4, 5, 6, -1]


def test_values_lie_column_by_column() -> None:
    pattern = RowGroupPattern((3, 2), (RowGroup(np.array([0, 2]), np.array([0, 1])),))
    weight = np.array([[1, 2], [0, 0], [3, 4]], dtype=np.float32)
    packed = pack(weight, pattern, 2)
    assert packed.values.tolist() == [1, 3, 2, 4]
    assert packed.length.tolist() == [2, 0], "the row of no group is a block without columns"
    assert packed.rows.tolist() == [0, 2, 1, -1]


@pytest.mark.parametrize("height", HEIGHTS)
def test_an_empty_pattern_has_blocks_without_columns(height: int) -> None:
    pattern = RowGroupPattern((5, 3), ())
    packed = pack(np.ones((5, 3), dtype=np.float32), pattern, height)
    assert packed.stored == 0
    assert packed.blocks == -(-5 // height)
    assert not packed.unpack().any()


def test_the_size_counts_values_and_indices() -> None:
    pattern = RowGroupPattern((4, 4), (RowGroup(np.arange(4, dtype=np.int32), np.arange(2, dtype=np.int32)),))
    packed = pack(np.ones((4, 4), dtype=np.float32), pattern, 4)
    assert packed.size_bytes == 4 * (8 + 2 + 1 + 1 + 1 + 4 + 1)


@given(draw_patterns(), st.sampled_from(HEIGHTS), st.sampled_from([1, 2, 3]))
def test_blocks_in_order_hold_every_cell_in_neighbouring_rows(
    pattern: RowGroupPattern, height: int, conv_groups: int
) -> None:
    if pattern.shape[0] % conv_groups:
        conv_groups = 1
    ordered, per_group = in_order(pattern, height, conv_groups), pattern.shape[0] // conv_groups
    assert not is_scattered(ordered)
    assert bool((ordered.covered() | ~pattern.covered()).all())
    for group in ordered.groups:
        assert group.height <= height
        assert group.rows[0] // per_group == group.rows[-1] // per_group
        assert bool(pattern.covered()[group.rows][:, group.columns].any(axis=0).all()), "a column that no row has"


def test_rows_that_are_no_neighbours_are_scattered() -> None:
    columns = np.array([0, 2], dtype=np.int32)
    assert is_scattered(RowGroupPattern((4, 3), (RowGroup(np.array([0, 2]), columns),)))
    assert not is_scattered(RowGroupPattern((4, 3), (RowGroup(np.array([1, 2]), columns),)))
