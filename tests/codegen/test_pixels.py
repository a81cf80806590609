"""The pixel-lane kernel against torch in float64."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from fxprune.codegen.cpu import pixel_tiles
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.cpu.pixels import PixelsProblem, build_pixels_kernel
from fxprune.codegen.workload import ConvShape
from fxprune.errors import CodegenError
from tests.codegen.suite import (
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

ORDERS: list[tuple[Split, bool]] = [("pixels", False), ("pixels", True), ("blocks", False)]
"""What threads share, and whether they then go block by block."""

LOW_WIDE = PixelsSchedule(4, 1, 1, "pixels")
NARROW = PixelsSchedule(4, 2, 1, "blocks")
QUAD_SHORT = PixelsSchedule(4, 4, 2, "pixels")
LOW = PixelsSchedule(4, 1, 4, "pixels")
PAIR = PixelsSchedule(4, 2, 2, "blocks")
QUAD = PixelsSchedule(8, 4, 2, "pixels")
LONG = PixelsSchedule(16, 2, 1, "pixels")

IMAGE = conv(5, 13, (7, 11), 3, padding=1)
BATCH = conv(3, 10, (5, 9), 3, padding=1, batch=3)
POINTS = conv(7, 12, (5, 9), 1)


def shapes() -> dict[str, Case]:
    """Odd sizes, kernels, strides, padding, groups, axes."""
    cases = {
        "one_row": Case(s := conv(5, 1, (6, 9), 3, padding=1), LOW, draw_pattern(s, (1,))),
        "one_column": Case(s := conv(1, 11, (5, 9)), PAIR, full_pattern(s)),
        "one_row_one_column": Case(s := conv(1, 1, (3, 3), 1), PixelsSchedule(4, 1, 2, "pixels"), full_pattern(s)),
        "one_pixel": Case(s := conv(6, 7, (3, 3), 3), PixelsSchedule(4, 2, 1, "blocks"), draw_pattern(s, (2,))),
        "primes": Case(s := conv(13, 17, (11, 13), 3, padding=1, batch=2), QUAD, draw_pattern(s, (3, 5, 1))),
        "full_mask": Case(IMAGE, QUAD, full_pattern(IMAGE)),
        "empty_mask": Case(IMAGE, PAIR, empty_pattern(IMAGE)),
        "empty_mask_no_bias": Case(IMAGE, LOW, empty_pattern(IMAGE), bias=False),
        "some_empty_rows": Case(IMAGE, QUAD, draw_pattern(IMAGE, (2,), left_out=5)),
        "kernel_5": Case(s := conv(3, 10, (9, 8), 5, padding=2), QUAD, draw_pattern(s, (4,))),
        "kernel_7_stride_2": Case(s := conv(3, 8, (17, 15), 7, padding=3, stride=2), PAIR, draw_pattern(s, (2,))),
        "kernel_3x1": Case(s := conv(6, 8, (8, 9), (3, 1), padding=halo((1, 1), (0, 0))), LOW, draw_pattern(s, (1,))),
        "no_padding": Case(s := conv(4, 9, (8, 11), 3), LOW, draw_pattern(s, (1,))),
        "stride_2": Case(s := conv(4, 9, (8, 13), 3, padding=1, stride=2), QUAD_SHORT, draw_pattern(s, (4,))),
        "stride_2x1": Case(s := conv(4, 9, (8, 9), 3, padding=1, stride=(2, 1)), QUAD, draw_pattern(s, (4,))),
        "stride_1x3": Case(s := conv(4, 9, (6, 16), 3, padding=1, stride=(1, 3)), PAIR, draw_pattern(s, (2,))),
        "pointwise_stride_2": Case(s := conv(9, 8, (7, 9), 1, stride=2), QUAD_SHORT, draw_pattern(s, (4,))),
        "pointwise_padding": Case(s := conv(9, 8, (5, 6), 1, padding=1), QUAD, draw_pattern(s, (4,))),
        "dilation_2": Case(s := conv(4, 9, (9, 10), 3, padding=2, dilation=2), LOW, draw_pattern(s, (1,))),
        "dilation_3x2_stride_2": Case(
            s := conv(4, 9, (13, 14), 3, padding=2, dilation=(3, 2), stride=2), PAIR, draw_pattern(s, (2,))
        ),
        "padding_one_side": Case(s := conv(4, 9, (6, 8), 2, padding=halo((0, 1), (0, 1))), QUAD, draw_pattern(s, (4,))),
        "padding_uneven": Case(s := conv(4, 9, (6, 7), 3, padding=halo((2, 0), (1, 3))), LOW, draw_pattern(s, (1,))),
        "padding_beyond_image": Case(s := conv(3, 6, (2, 3), 3, padding=4), PAIR, draw_pattern(s, (2,))),
        "padding_beyond_image_stride": Case(
            s := conv(3, 6, (2, 3), 2, padding=5, stride=3), NARROW, draw_pattern(s, (2,))
        ),
        "conv_groups_2": Case(s := conv(6, 14, (6, 9), 3, padding=1, groups=2), QUAD, draw_pattern(s, (4, 3))),
        "conv_groups_4": Case(s := conv(8, 12, (6, 8), 3, padding=1, groups=4), LOW, draw_pattern(s, (1,))),
        "axes_1": Case(
            s := conv(6, 10, (39,), (3,), padding=1, stride=(2,), dilation=(1,)), PAIR, draw_pattern(s, (2,))
        ),
        "axes_3_pointwise": Case(s := conv(7, 10, (3, 4, 5), (1, 1, 1), batch=2), PAIR, draw_pattern(s, (2,))),
        "five_tokens": Case(s := linear(5, 31, 9), NARROW, draw_pattern(s, (2,))),
        "tokens_196": Case(s := linear(196, 24, 16), PixelsSchedule(16, 4, 3, "pixels"), draw_pattern(s, (4,))),
        "one_token_batch_2": Case(
            s := conv(9, 6, (1, 5), (1, 2), batch=2), NARROW, draw_pattern(s, (2,)), activation="relu"
        ),
        "long_lines": Case(s := conv(2, 4, (3, 71), 3, padding=1), LONG, draw_pattern(s, (2,))),
        "batch_5": Case(s := conv(3, 6, (5, 6), 3, padding=1, batch=5), PAIR, draw_pattern(s, (2,))),
        "batch_3_residual": Case(BATCH, QUAD, draw_pattern(BATCH, (4,)), residual=True, activation="relu"),
        "batch_2_of_3_threads": Case(
            s := conv(3, 6, (5, 6), 3, padding=1, batch=2), LOW, draw_pattern(s, (1,)), threads=3
        ),
    }
    for width in (1, 2, 3, 5, 6, 7):
        shape = conv(3, 5, (4, width), 3, padding=1)
        cases[f"lines_of_{width}"] = Case(
            shape, PixelsSchedule(8, 2, 1, "pixels"), draw_pattern(shape, (2,)), activation="silu", residual=True
        )
    return cases


def rows_of_blocks() -> dict[str, Case]:
    """Heights, order and number of the rows in a group; column counts; residuals."""
    cases = {
        f"ragged_{height}": Case(IMAGE, QUAD, draw_pattern(IMAGE, (height,)), residual=height % 2 == 0)
        for height in (1, 2, 3, 4, 5, 6, 9, 13)
    }
    for columns in range(4, 8):
        cases[f"negative_columns_{columns}"] = Case(
            POINTS, PixelsSchedule(8, 2, 3, "pixels"), draw_pattern(POINTS, (5, 4), columns=columns), negative=True
        )
    for residual, bias in itertools.product((False, True), repeat=2):
        suffix = f"{'_residual' if residual else ''}{'_bias' if bias else ''}"
        pattern = draw_pattern(IMAGE, (4, 3, 1), scattered=True)
        cases[f"scattered{suffix}"] = Case(IMAGE, QUAD, pattern, residual=residual, bias=bias)
    cases["cells_one_by_one"] = Case(s := conv(5, 45, (6, 5), 3, padding=1, stride=(2, 1)), LOW_WIDE, single_cells(s))
    cases["cells_one_by_one_phases"] = Case(
        s := conv(3, 27, (9, 16), 3, padding=1, stride=(2, 3), dilation=(3, 2)), LOW_WIDE, single_cells(s)
    )
    cases["cells_one_by_one_groups"] = Case(s := conv(6, 36, (4, 7), (2, 3), groups=2), LOW_WIDE, single_cells(s))
    return cases


def schedules() -> dict[str, Case]:
    """Lanes, rows, tiles, orders and threads on one layer that packs and one that does not."""
    cases: dict[str, Case] = {}
    deep = conv(4, 18, (6, 33), 3, padding=1)
    flat = conv(6, 18, (11, 13), 1)
    tiles = [(16, 1, 4, 4), (16, 8, 1, 1), (8, 2, 4, 3), (4, 4, 6, 2)]
    for (lanes, height, several, few), (split, by_block) in itertools.product(tiles, ORDERS):
        threads = 1 + len(cases) % 3
        for kind, shape, best in (("deep", deep, several), ("flat", flat, few)):
            cases[f"{kind}_{lanes}_{height}_{split}{'_by_block' if by_block else ''}"] = Case(
                shape,
                PixelsSchedule(lanes, height, best, split, by_block),
                draw_pattern(shape, (8, 3), scattered=True),
                threads=threads,
                activation="relu",
                residual=True,
            )
        for x_spread, y_spread in ((False, False), (False, True), (True, False)):
            name = f"flat_{lanes}_{height}_{split}{'_by_block' if by_block else ''}"
            touching = f"{name}{'' if x_spread else '_x'}{'' if y_spread else '_y'}_touching"
            cases[touching] = replace(cases[name], x_spread=x_spread, y_spread=y_spread)
        for kind in ("deep", "flat"):
            name = f"{kind}_{lanes}_{height}_{split}{'_by_block' if by_block else ''}"
            cases[f"{name}_residual_touching"] = replace(cases[name], residual_spread=False)
    tiny = conv(2, 3, (2, 4), 3, padding=1)
    for split, by_block in ORDERS:
        cases[f"more_threads_than_tiles_{split}{'_by_block' if by_block else ''}"] = Case(
            tiny, PixelsSchedule(4, 2, 2, split, by_block), full_pattern(tiny), threads=7
        )
    cases["images_by_block"] = Case(
        BATCH, PixelsSchedule(4, 2, 2, "pixels", by_block=True), draw_pattern(BATCH, (2,)), threads=2
    )
    for stride, dilation in ((1, 1), (1, 2), (2, 1), (3, 2)):  # a thread has the lines of its own tiles only
        shape = conv(3, 9, (13, 9), 3, padding=2, dilation=dilation, stride=stride)
        cases[f"own_lines_{stride}_{dilation}"] = Case(
            shape, PixelsSchedule(8, 2, 1, "pixels"), draw_pattern(shape, (2,)), threads=3
        )
    return cases


def tails() -> dict[str, Case]:
    """Pixels behind the vectors of a tile: rows as lanes, ragged blocks, tiles that overlap and tiles that do not."""
    cases: dict[str, Case] = {}
    rows = ((4, 1, 1), (4, 2, 3), (8, 4, 1), (8, 8, 2), (16, 6, 1))
    for (lanes, height, tail), (split, by_block) in itertools.product(rows, ORDERS):
        cases[f"tail_{lanes}_{height}_{split}{'_by_block' if by_block else ''}"] = Case(
            s := conv(6, 18, (7, 9), 1, batch=1 + len(cases) % 2),
            PixelsSchedule(lanes, height, 2, split, by_block, tail=tail),
            draw_pattern(s, (height, 3), scattered=True),
            threads=1 + len(cases) % 3,
            activation="silu" if len(cases) % 2 else None,
            residual=len(cases) % 3 > 0,
        )
    small = conv(9, 16, (7, 7), 1)
    once = PixelsSchedule(16, 8, 3, "blocks", tail=1)
    cases["tail_7x7"] = Case(small, once, draw_pattern(small, (8,)), residual=True, in_place=True)
    cases["tail_residual_touching"] = replace(cases["tail_7x7"], in_place=False, residual_spread=False)
    cases["tail_many_threads"] = Case(small, once, draw_pattern(small, (8,)), threads=7, negative=True)
    return cases


def gapless() -> dict[str, Case]:
    """Planes with a copy for every tap of a line."""
    layers = {
        "": conv(5, 13, (7, 7), 3, padding=1),
        "_stride_2": conv(4, 9, (13, 13), 3, padding=1, stride=2),
        "_stride_2x1": conv(4, 9, (8, 9), 3, padding=1, stride=(2, 1)),
        "_stride_1x3": conv(4, 9, (6, 16), 3, padding=1, stride=(1, 3)),
        "_dilation_2": conv(4, 9, (9, 10), 3, padding=2, dilation=2),
        "_dilation_3x2_stride_2": conv(4, 9, (13, 14), 3, padding=2, dilation=(3, 2), stride=2),
        "_kernel_5": conv(3, 10, (9, 8), 5, padding=2),
        "_kernel_1x2": conv(3, 10, (6, 8), (1, 2)),
        "_padding_uneven": conv(4, 9, (6, 7), 3, padding=halo((2, 0), (1, 3))),
        "_padding_beyond_image": conv(3, 6, (2, 3), 3, padding=4),
        "_no_padding": conv(4, 9, (8, 11), 3),
        "_conv_groups_2": conv(6, 14, (6, 9), 3, padding=1, groups=2),
        "_batch_3": BATCH,
        "_pointwise_stride_2": conv(9, 8, (7, 9), 1, stride=2),
    }
    cases: dict[str, Case] = {}
    for (name, shape), tail in itertools.product(layers.items(), (0, 1)):
        split, by_block = ORDERS[len(cases) % 3]
        cases[f"gapless{name}{'_tail' if tail else ''}"] = Case(
            shape,
            PixelsSchedule(8, 2, 1, split, by_block, tail=tail, gapless=True),
            draw_pattern(shape, (2,)),
            threads=1 + len(cases) % 3,
            activation="relu",
            residual=bool(tail),
        )
    cells = conv(3, 27, (9, 16), 3, padding=1, stride=(2, 3), dilation=(3, 2))
    cases["gapless_cells_one_by_one"] = Case(cells, replace(LOW_WIDE, gapless=True), single_cells(cells))
    return cases


def parts() -> dict[str, Case]:
    """Some channels copied and multiplied at a time, the sums kept in between."""
    layers = {
        "": conv(6, 13, (7, 11), 3, padding=1),
        "_whole": conv(6, 13, (8, 11), 3),
        "_stride_2": conv(6, 9, (13, 13), 3, padding=1, stride=2),
        "_dilation_2": conv(6, 9, (9, 10), 3, padding=2, dilation=2),
        "_pointwise_stride_2": conv(6, 8, (7, 9), 1, stride=2),
        "_batch_3": conv(6, 10, (5, 9), 3, padding=1, batch=3),
    }
    cases: dict[str, Case] = {}
    for (name, shape), channels, gapless in itertools.product(layers.items(), (1, 2, 3), (False, True)):
        by_block = len(cases) % 2 > 0
        cases[f"parts_{channels}{name}{'_gapless' if gapless else ''}"] = Case(
            shape,
            PixelsSchedule(8, (1, 4)[len(cases) % 3 // 2], 2, "pixels", by_block, gapless=gapless, channels=channels),
            draw_pattern(shape, (4, 3, 1), scattered=True, left_out=len(cases) % 3),
            threads=1 + len(cases) % 4,
            activation=("relu", None)[len(cases) % 2],
            residual=len(cases) % 3 > 0,
        )
    single = conv(3, 27, (9, 9), 3, padding=1)
    once = PixelsSchedule(8, 1, 2, "pixels", channels=1)
    cases["parts_cells_one_by_one"] = Case(single, once, single_cells(single))
    cases["parts_empty"] = Case(single, once, empty_pattern(single), activation="relu")
    cases["parts_in_place"] = Case(single, once, draw_pattern(single, (1,)), residual=True, in_place=True)
    return cases


CASES = shapes() | rows_of_blocks() | schedules() | tails() | gapless() | parts()


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_equals_torch(suite: Suite, name: str) -> None:
    work, schedule = CASES[name].workload(), CASES[name].schedule
    assert pixel_tiles.supports(work), "the case itself is wrong"
    assert isinstance(schedule, PixelsSchedule)
    assert pixel_tiles.fits(work, schedule), "the case itself is wrong"
    suite.check(name)


@pytest.mark.parametrize("name", ["scattered_residual_bias", "more_threads_than_tiles_blocks", "batch_5"])
def test_a_second_run_gives_the_same_bits(suite: Suite, name: str) -> None:
    first, _ = suite.run(name)
    second, _ = suite.run(name)
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("shape", "vectors", "lanes", "fitting"),
    [
        (IMAGE, 11, 8, True),
        (IMAGE, 12, 8, False),
        (IMAGE, 21, 4, True),
        (IMAGE, 22, 4, False),
        (POINTS, 6, 8, True),
        (POINTS, 7, 8, False),
    ],
)
def test_a_tile_must_fit_the_run(shape: ConvShape, vectors: int, lanes: int, fitting: bool) -> None:
    """7 lines of 11 and a cell between are 83 cells, which may be read behind; in place only 48 of 45 pixels may."""
    work = Case(shape, LOW, full_pattern(shape)).workload()
    assert pixel_tiles.fits(work, PixelsSchedule(lanes, 1, vectors, "pixels")) is fitting


@pytest.mark.parametrize(("size", "run"), [((7, 7), 64), ((14, 14), 208), ((16, 16), 256), ((4, 4), 16), ((2, 4), 8)])
def test_a_run_ends_with_a_cache_line(size: tuple[int, int], run: int) -> None:
    """A plane of 16x16 has one more line behind it, so that neighbours lie in different sets: nothing to compute."""
    for shape in (conv(4, 4, size, 1), conv(4, 4, (2 * size[0], 2 * size[1]), 1, stride=2)):
        work = Case(shape, LOW, full_pattern(shape)).workload()
        assert pixel_tiles.planes_read(work, LOW).run == run


def test_planes_that_touch_are_not_read_behind() -> None:
    for x_spread, y_spread in ((False, True), (True, False)):
        work = Case(POINTS, LOW, full_pattern(POINTS), x_spread=x_spread, y_spread=y_spread).workload()
        assert pixel_tiles.fits(work, PixelsSchedule(8, 1, 5, "pixels"))
        assert not pixel_tiles.fits(work, PixelsSchedule(8, 1, 6, "pixels"))


def test_a_last_tile_is_narrower_where_that_saves_enough() -> None:
    """13 vectors cover 14 lines of 14 in place, 4 tiles of 3 and one of 1; of 65 tiles the last one is not worth it."""
    work = Case(s := conv(4, 4, (14, 14), 1), LOW, full_pattern(s)).workload()
    schedule = PixelsSchedule(16, 1, 3, "pixels")
    assert pixel_tiles.tile_widths(work, schedule).tolist() == [3, 3, 3, 3, 1]
    assert pixel_tiles.computed_pixels(work, schedule) == 13 * 16
    long = Case(s := conv(4, 4, (56, 56), 1), LOW, full_pattern(s)).workload()
    assert set(pixel_tiles.tile_widths(long, schedule).tolist()) == {3}
    narrow = {
        (pixel_tiles.is_whole(case.workload(), case.schedule), case.schedule.by_block)
        for case in CASES.values()
        if isinstance(case.schedule, PixelsSchedule)
        and len(set(pixel_tiles.tile_widths(case.workload(), case.schedule))) > 1
    }
    assert len(narrow) == 4, "the kernels above are compared with torch in every order and way of storing"


@pytest.mark.parametrize(
    ("shape", "schedule", "fitting"),
    [
        (conv(4, 8, (7, 7), 1), PixelsSchedule(16, 8, 3, "blocks", tail=1), True),
        (conv(4, 8, (7, 7), 1), PixelsSchedule(16, 8, 3, "blocks", tail=2), False),
        (conv(4, 8, (7, 7), 1), PixelsSchedule(4, 8, 3, "blocks", tail=1), False),
        (conv(4, 8, (7, 7), 3, padding=1), PixelsSchedule(16, 8, 3, "blocks", tail=1), False),
        (conv(4, 8, (7, 7), 3, padding=1), PixelsSchedule(16, 8, 3, "blocks", tail=1, gapless=True), True),
    ],
)
def test_a_tail_needs_a_vector_of_rows_and_a_run_of_output(
    shape: ConvShape, schedule: PixelsSchedule, fitting: bool
) -> None:
    assert pixel_tiles.fits(Case(shape, LOW, full_pattern(shape)).workload(), schedule) is fitting


@pytest.mark.parametrize(
    ("shape", "schedule"),
    [
        (POINTS, PixelsSchedule(8, 1, 2, "pixels", channels=2)),
        (conv(6, 14, (6, 9), 3, padding=1, groups=2), PixelsSchedule(8, 1, 2, "pixels", channels=2)),
        (IMAGE, PixelsSchedule(8, 1, 2, "blocks", channels=2)),
        (conv(4, 8, (7, 7), 3, padding=1), PixelsSchedule(16, 8, 3, "pixels", tail=1, gapless=True, channels=2)),
    ],
    ids=["in_place", "conv_groups", "shared_planes", "tail"],
)
def test_channels_come_in_parts_only_where_each_thread_copies_them(shape: ConvShape, schedule: PixelsSchedule) -> None:
    work = Case(shape, LOW, full_pattern(shape)).workload()
    assert pixel_tiles.fits(work, replace(schedule, channels=0)), "the case itself is wrong"
    assert not pixel_tiles.fits(work, schedule)
    with pytest.raises(CodegenError, match=r"channels' does not fit ConvShape.*Choose one of"):
        build_pixels_kernel("refused", work, PixelsProblem(1, 3), schedule)


@pytest.mark.parametrize(
    ("shape", "vectors", "channels"),
    [
        (conv(256, 8, (14, 14), 3, padding=1), 7, 52),  # 7 vectors and the taps of two more lines are 9 cache lines
        (conv(256, 8, (28, 28), 3, padding=1, stride=2), 7, 20),  # three of four phases are read by several taps
        (conv(100, 8, (14, 14), (3, 1), padding=halo((1, 1), (0, 0))), 7, 50),
        (conv(16, 8, (14, 14), 3, padding=1), 7, 0),
        (conv(256, 8, (14, 14), 1), 7, 0),
        (conv(256, 8, (28, 28), 1, stride=2), 7, 0),
    ],
    ids=["stride_1", "stride_2", "equal_parts", "few_channels", "in_place", "one_tap"],
)
def test_as_many_channels_as_fit_are_copied_at_a_time(shape: ConvShape, vectors: int, channels: int) -> None:
    schedule = PixelsSchedule(16, 1, vectors, "pixels")
    found = pixel_tiles.in_parts(Case(shape, LOW, full_pattern(shape)).workload(), schedule, 512)
    assert found == (replace(schedule, channels=channels) if channels else None)


def test_a_tile_with_a_tail_may_overwrite_its_residual_where_no_tile_overlaps_another() -> None:
    schedule = PixelsSchedule(16, 8, 3, "blocks", tail=1)
    for height, once in ((7, True), (14, True), (9, False)):
        shape = conv(4, 8, (height, 7), 1)
        assert pixel_tiles.computes_once(Case(shape, LOW, full_pattern(shape)).workload(), schedule) is once


def test_a_pointwise_image_smaller_than_a_vector_does_not_fit() -> None:
    shape = conv(4, 4, (1, 3), 1)
    work = Case(shape, LOW, full_pattern(shape)).workload()
    assert not pixel_tiles.fits(work, PixelsSchedule(4, 1, 1, "pixels")), "it would read behind the input"


@pytest.mark.parametrize(
    ("shape", "supported"),
    [
        (conv(3, 4, (5, 5), 3, padding=1), True),
        (conv(3, 4, (3, 5, 5), (1, 1, 1)), True),
        (conv(3, 4, (3, 5, 5), (1, 3, 3)), False),
        (conv(3, 4, (1, 5, 5), (1, 3, 3), padding=1), False),
    ],
)
def test_a_depth_axis_is_refused_unless_the_layer_is_pointwise(shape: object, supported: bool) -> None:
    assert isinstance(shape, type(IMAGE))
    assert pixel_tiles.supports(Case(shape, LOW, full_pattern(shape)).workload()) is supported
