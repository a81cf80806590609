"""The row-lane kernel against torch in float64."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch

from fxprune.codegen.cpu import row_walk, rows
from fxprune.codegen.cpu.row_tile import RowsProblem
from fxprune.codegen.cpu.row_walk import RowsSchedule
from tests.codegen.suite import (
    SPLITS,
    Case,
    Split,
    Suite,
    conv,
    draw_pattern,
    empty_pattern,
    full_pattern,
    halo,
    linear,
    single_cells,
)

WIDE = RowsSchedule(16, 1, (1, 3), "pixels", 2)
NARROW = RowsSchedule(16, 1, (1, 2), "pixels")
HALF = RowsSchedule(8, 1, (1, 2), "blocks")
FOUR = RowsSchedule(4, 1, (1, 1), "pixels")
SQUARE = RowsSchedule(8, 2, (2, 2), "pixels", 0)

IMAGE = conv(5, 32, (7, 11), 3, padding=1)
BATCH = conv(3, 19, (5, 6), 3, padding=1, batch=3)
SHORT = conv(7, 33, (3, 3), 1)
SEVEN = conv(5, 37, (7, 7), 3, padding=1, batch=2)
ORDERS: tuple[tuple[Split, int], ...] = (("pixels", 1), ("pixels", 3), ("blocks", 0))
FIRST_AND_LAST = halo((2, 3), (1, 2))


def shapes() -> dict[str, Case]:
    """Odd sizes, kernels, strides, padding, groups, axes."""
    return {
        "one_row": Case(s := conv(5, 1, (6, 7), 3, padding=1), WIDE, draw_pattern(s, (1,))),
        "one_column": Case(s := conv(1, 23, (5, 5)), HALF, full_pattern(s)),
        "one_row_one_column": Case(s := conv(1, 1, (3, 3)), FOUR, full_pattern(s)),
        "one_pixel": Case(s := conv(13, 17, (1, 1)), FOUR, draw_pattern(s)),
        "primes": Case(s := conv(13, 37, (11, 13), 3, padding=1, batch=2), SQUARE, draw_pattern(s, (7, 5, 11))),
        "full_mask": Case(IMAGE, WIDE, full_pattern(IMAGE)),
        "empty_mask": Case(IMAGE, WIDE, empty_pattern(IMAGE)),
        "empty_mask_no_bias": Case(IMAGE, HALF, empty_pattern(IMAGE), bias=False),
        "some_empty_rows": Case(IMAGE, HALF, draw_pattern(IMAGE, (8,), left_out=5)),
        "kernel_5": Case(s := conv(3, 20, (9, 8), 5, padding=2), WIDE, draw_pattern(s)),
        "kernel_7_stride_2": Case(s := conv(3, 16, (17, 15), 7, padding=3, stride=2), HALF, draw_pattern(s)),
        "kernel_3x1": Case(s := conv(6, 16, (8, 9), (3, 1), padding=halo((1, 1), (0, 0))), SQUARE, draw_pattern(s)),
        "no_padding": Case(s := conv(4, 18, (8, 9), 3), WIDE, draw_pattern(s)),
        "stride_2": Case(s := conv(4, 18, (8, 9), 3, padding=1, stride=2), SQUARE, draw_pattern(s)),
        "stride_2x1": Case(s := conv(4, 18, (8, 9), 3, padding=1, stride=(2, 1)), WIDE, draw_pattern(s)),
        "pointwise_stride_2": Case(s := conv(9, 24, (7, 9), 1, stride=2), SQUARE, draw_pattern(s)),
        "pointwise_padding": Case(s := conv(9, 24, (5, 4), 1, padding=1), WIDE, draw_pattern(s)),
        "dilation_2": Case(s := conv(4, 18, (9, 10), 3, padding=2, dilation=2), WIDE, draw_pattern(s)),
        "dilation_3x2_stride_2": Case(
            s := conv(4, 18, (13, 12), 3, padding=2, dilation=(3, 2), stride=2), HALF, draw_pattern(s)
        ),
        "padding_one_side": Case(s := conv(4, 18, (6, 7), 2, padding=halo((0, 1), (0, 1))), WIDE, draw_pattern(s)),
        "padding_uneven": Case(s := conv(4, 18, (6, 7), 3, padding=halo((2, 0), (1, 3))), SQUARE, draw_pattern(s)),
        "conv_groups_2": Case(s := conv(6, 38, (6, 7), 3, padding=1, groups=2), WIDE, draw_pattern(s, (4, 7))),
        "conv_groups_4": Case(s := conv(8, 32, (6, 7), 3, padding=1, groups=4), HALF, draw_pattern(s)),
        "axes_1": Case(s := conv(6, 20, (19,), (3,), padding=1, stride=(2,), dilation=(1,)), WIDE, draw_pattern(s)),
        "axes_3": Case(
            s := conv(3, 20, (4, 5, 6), (3, 3, 3), padding=1, stride=(1, 2, 1), dilation=(1, 1, 1), batch=2),
            SQUARE,
            draw_pattern(s),
        ),
        "axes_3_pointwise": Case(s := conv(7, 20, (3, 4, 5), (1, 1, 1), batch=2), WIDE, draw_pattern(s)),
        "axes_3_dilation": Case(
            s := conv(2, 16, (6, 5, 7), (2, 3, 3), padding=halo((1, 0), (1, 1), (2, 2)), dilation=(2, 1, 2)),
            HALF,
            draw_pattern(s),
        ),
        "one_token": Case(s := linear(1, 67, 50), RowsSchedule(16, 2, (1, 1), "blocks"), draw_pattern(s, (32,))),
        "five_tokens": Case(s := linear(5, 31, 29), RowsSchedule(8, 1, (1, 5), "blocks"), draw_pattern(s, (8, 3))),
        "tokens_196": Case(s := linear(196, 24, 48), RowsSchedule(16, 1, (1, 14), "pixels", 4), draw_pattern(s)),
        "batch_2": Case(s := conv(3, 19, (5, 6), 3, padding=1, batch=2), SQUARE, draw_pattern(s)),
        "batch_3": Case(BATCH, WIDE, draw_pattern(BATCH)),
        "batch_5_pointwise": Case(s := conv(6, 19, (3, 5), 1, batch=5), WIDE, draw_pattern(s)),
        "x_halo_beyond_padding": Case(IMAGE, WIDE, draw_pattern(IMAGE), x_halo=halo((2, 1), (3, 2))),
        "pointwise_x_halo": Case(SHORT, WIDE, draw_pattern(SHORT), x_halo=FIRST_AND_LAST),
        "y_halo": Case(BATCH, WIDE, draw_pattern(BATCH), y_halo=FIRST_AND_LAST),
        "y_halo_blocks": Case(BATCH, HALF, draw_pattern(BATCH), y_halo=halo((1, 1), (1, 1))),
        "y_halo_one_side": Case(SHORT, WIDE, draw_pattern(SHORT), y_halo=halo((0, 1), (2, 0)), threads=1),
        "y_halo_axes_3": Case(
            s := conv(3, 18, (3, 4, 5), (3, 3, 3), padding=1, batch=2),
            WIDE,
            draw_pattern(s),
            y_halo=halo((2, 1), (0, 1), (1, 0)),
        ),
        "y_halo_empty_mask": Case(SHORT, HALF, empty_pattern(SHORT), y_halo=FIRST_AND_LAST),
    }


def rows_of_blocks() -> dict[str, Case]:
    """Heights, order and number of the rows in a group; column counts; residuals."""
    cases = {
        f"ragged_{height}": Case(IMAGE, NARROW, draw_pattern(IMAGE, (height,)), residual=height % 2 == 0)
        for height in range(1, 18)
    }
    many = conv(7, 21, (5, 4), 3, padding=1)
    for columns in (*range(4, 8), 12, 13, 14, 15):
        cases[f"negative_columns_{columns}"] = Case(
            many, HALF, draw_pattern(many, (9, 8), columns=columns), negative=True, bias=False
        )
    for residual, bias in itertools.product((False, True), repeat=2):
        suffix = f"{'_residual' if residual else ''}{'_bias' if bias else ''}"
        pattern = draw_pattern(IMAGE, (16, 5, 11), scattered=True)
        cases[f"scattered{suffix}"] = Case(IMAGE, WIDE, pattern, residual=residual, bias=bias)
    around = partial(Case, BATCH, y_halo=FIRST_AND_LAST, residual_halo=halo((1, 0), (0, 2)), residual=True)
    mixed, straight = draw_pattern(BATCH, (8, 3, 8), scattered=False), draw_pattern(BATCH, (19,))
    return cases | {
        "scattered_halos": around(HALF, draw_pattern(BATCH, (5,), scattered=True)),
        "mixed_halos": around(HALF, mixed, activation="relu"),
        "straight_halos": around(FOUR, straight, activation="relu"),
        "pointwise_residual_halo": Case(SHORT, HALF, draw_pattern(SHORT), residual=True, residual_halo=FIRST_AND_LAST),
        "remainder_of_32": Case(
            s := conv(6, 45, (4, 5), 3, padding=1), RowsSchedule(16, 2, (1, 5), "pixels"), draw_pattern(s, (45,))
        ),
        "cells_one_by_one": Case(s := conv(5, 45, (6, 5), 3, padding=1, stride=(2, 1)), FOUR, single_cells(s)),
        "cells_one_by_one_groups": Case(s := conv(6, 36, (4, 5), (2, 3), groups=2), FOUR, single_cells(s)),
        "cells_one_by_one_axes_3": Case(
            s := conv(2, 24, (3, 5, 7), (2, 2, 3), dilation=(1, 2, 3), stride=(1, 1, 1)), FOUR, single_cells(s)
        ),
    }


def schedules() -> dict[str, Case]:
    """Lanes, vectors, tiles, splits, chunks and threads on two layers."""
    options = [
        RowsSchedule(lanes, vectors, tile, split, chunk)
        for (lanes, vectors, tile), (split, chunk) in itertools.product(
            [(16, 1, (1, 7)), (16, 2, (2, 4)), (8, 4, (4, 1)), (4, 2, (1, 11)), (4, 1, (3, 3))],
            ORDERS,
        )
    ]
    pattern = draw_pattern(IMAGE, (16, 7, 9))
    cases = {
        f"schedule_{index}": Case(IMAGE, option, pattern, threads=1 + index % 3, activation="relu", residual=True)
        for index, option in enumerate(options)
    }
    tiny = conv(6, 40, (2, 2), 3, padding=1)
    for split in SPLITS:
        cases[f"more_threads_than_tiles_{split}"] = Case(
            tiny, RowsSchedule(8, 1, (2, 2), split), draw_pattern(tiny, (8,)), threads=7, y_halo=halo((1, 1), (1, 1))
        )
    cases["chunk_beyond_tiles"] = Case(tiny, RowsSchedule(8, 1, (1, 2), "pixels", 100), draw_pattern(tiny, (8,)))
    cases["more_threads_than_units"] = Case(tiny, RowsSchedule(16, 4, (2, 2), "blocks"), full_pattern(tiny), threads=5)
    return cases


def prefetches() -> dict[str, Case]:
    """Kernels that ask for the next tile's memory, with one long line and with image lines."""
    option = RowsSchedule(8, 2, (1, 4), "pixels", prefetch=True)
    asking = partial(Case, schedule=option, activation="relu")
    line = conv(9, 40, (5, 7), 1, batch=2)
    mixed = draw_pattern(line, (16, 5))
    return {
        "prefetch_line": asking(line, pattern=mixed),
        "prefetch_line_residual": asking(line, pattern=mixed, residual=True),
        "prefetch_image": asking(IMAGE, pattern=draw_pattern(IMAGE), residual=True, y_halo=FIRST_AND_LAST),
        "prefetch_scattered": asking(IMAGE, pattern=draw_pattern(IMAGE, (5,), scattered=True), residual=True),
        "prefetch_empty_mask": asking(line, pattern=empty_pattern(line), threads=3),
    }


def evens() -> dict[str, Case]:
    """Tiles that go on from one image line to the next, and lines cut into nearly equal tiles."""
    mixed, strided = draw_pattern(SEVEN, (16, 5), scattered=False), conv(6, 24, (13, 14), 3, padding=1, stride=2)
    cases = {
        f"even_{split}_{chunk}_{threads}": Case(
            SEVEN, RowsSchedule(8, 2, (1, 13), split, chunk, even=True), mixed, threads=threads, residual=threads == 2
        )
        for (split, chunk), threads in itertools.product(ORDERS, (1, 2, 3))
    }
    around = RowsSchedule(8, 1, (1, 25), "blocks", even=True)
    tokens, deep = linear(197, 24, 48), conv(3, 18, (2, 5, 4), (1, 3, 3), padding=halo((0, 0), (1, 1), (1, 1)))
    return cases | {
        "even_halos": Case(SEVEN, around, mixed, y_halo=FIRST_AND_LAST, x_halo=halo((2, 1), (3, 2)), activation="relu"),
        "even_stride": Case(strided, RowsSchedule(16, 1, (1, 17), "pixels", even=True), draw_pattern(strided)),
        "even_scattered": Case(SEVEN, around, draw_pattern(SEVEN, (5,), scattered=True), residual=True),
        "even_tokens": Case(tokens, RowsSchedule(16, 2, (1, 14), "pixels", 4, even=True), draw_pattern(tokens, (32,))),
        "even_depth": Case(deep, RowsSchedule(16, 1, (1, 7), "pixels", even=True), draw_pattern(deep)),
        "even_empty_mask": Case(SEVEN, around, empty_pattern(SEVEN)),
    }


CASES = shapes() | rows_of_blocks() | schedules() | prefetches() | evens()


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_equals_torch(suite: Suite, name: str) -> None:
    case = CASES[name]
    assert isinstance(case.schedule, RowsSchedule)
    assert row_walk.fits(case.workload(), case.schedule), "the case itself is wrong"
    suite.check(name)


@pytest.mark.parametrize("name", ["scattered_residual_bias", "more_threads_than_tiles_blocks", "y_halo"])
def test_a_second_run_gives_the_same_bits(suite: Suite, name: str) -> None:
    first, _ = suite.run(name)
    second, _ = suite.run(name)
    assert torch.equal(first, second)


@pytest.mark.parametrize(("size", "columns", "asked"), [(1, 10, 2), (1, 4, 4), (1, 0, 8), (3, 10, 0)])
def test_the_next_tiles_input_is_asked_for_column_by_column(size: int, columns: int, asked: int) -> None:
    """Two blocks ask for two lines each of four pixels of 40 channels: all of them with as many pairs as there are."""
    layer = conv(40, 32, (5, 7), size, padding=size // 2)
    case = Case(layer, RowsSchedule(8, 2, (1, 4), "pixels", prefetch=True), full_pattern(layer))
    problem = RowsProblem(2, columns, has_vector_rows=True, has_scattered_rows=False, keeps_others=False)
    assert isinstance(case.schedule, RowsSchedule)
    text = rows.build_rows_kernel("f", case.workload(), problem, case.schedule)
    assert text.count("T.address_of(X[next[0]") == asked


def _tiled(tile: tuple[int, int], *, even: bool = False) -> RowsSchedule:
    return RowsSchedule(8, 1, tile, "pixels", even=even)


def test_a_tile_larger_than_the_output_does_not_fit() -> None:
    work = Case(IMAGE, WIDE, full_pattern(IMAGE)).workload()
    assert row_walk.fits(work, _tiled((7, 11)))
    assert not row_walk.fits(work, _tiled((8, 1)))
    assert not row_walk.fits(work, _tiled((1, 12)))


def test_overlapping_tiles_count_as_computed_twice() -> None:
    work = Case(IMAGE, WIDE, full_pattern(IMAGE)).workload()
    assert row_walk.tiles_of(work, _tiled((2, 4))) == 4 * 3
    assert row_walk.computed_pixels(work, _tiled((2, 4))) == 8 * 12
    flat = Case(SHORT, WIDE, full_pattern(SHORT)).workload()
    assert row_walk.tiles_of(flat, _tiled((1, 4))) == 3, "a 1x1 layer is one line of pixels"


def test_even_tiles_compute_every_pixel_once() -> None:
    work = Case(SEVEN, WIDE, full_pattern(SEVEN)).workload()
    schedule = _tiled((1, 13), even=True)
    assert row_walk.fits(work, schedule)
    assert list(row_walk.tile_widths(work, schedule)) == [13, 12, 12, 12] * 2
    assert [form.start for form in row_walk.find_forms(work, schedule)] == [0, 6, 4, 2]
    flat = Case(SHORT, WIDE, full_pattern(SHORT)).workload()
    assert list(row_walk.tile_widths(flat, _tiled((1, 5), even=True))) == [5, 4]


@pytest.mark.parametrize(
    ("tile", "prefetch"),
    [
        pytest.param((1, 14), False, id="the_largest_has_fewer_pixels"),
        pytest.param((1, 10), False, id="too_many_tiles"),
        pytest.param((1, 7), False, id="a_rectangle"),
        pytest.param((2, 13), False, id="two_lines"),
        pytest.param((1, 13), True, id="asks_for_the_next"),
    ],
)
def test_even_tiles_that_do_not_fit(tile: tuple[int, int], *, prefetch: bool) -> None:
    work = Case(SEVEN, WIDE, full_pattern(SEVEN)).workload()
    assert not row_walk.fits(work, RowsSchedule(8, 1, tile, "pixels", prefetch=prefetch, even=True))
