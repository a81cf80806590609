"""Row-lane kernels that pool what they compute, against torch in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fxprune.codegen.cpu import row_walk
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.cpu.winograd_plan import WinogradSchedule
from fxprune.codegen.kernel import BoundKernel
from fxprune.codegen.row_schedules import may_pool, refit
from fxprune.codegen.schedules import Schedule
from fxprune.codegen.target import parse_target
from fxprune.codegen.workload import Windows
from fxprune.errors import CodegenError
from tests.codegen.suite import (
    Buffers,
    Case,
    Split,
    Suite,
    conv,
    draw_pattern,
    draw_tensors,
    empty_pattern,
    full_pattern,
    halo,
    in_order,
    make,
)

PAIRS = Windows("max", 2, 2)
MEAN = Windows("mean", 2, 2)

WIDE = RowsSchedule(16, 2, (2, 6), "pixels", 1)
NARROW = RowsSchedule(8, 1, (2, 4), "blocks")
FOUR = RowsSchedule(4, 2, (4, 2), "pixels", 0)
TALL = RowsSchedule(16, 1, (6, 4), "pixels", 2)

IMAGE = conv(5, 40, (8, 12), 3, padding=1)
ODD = conv(4, 19, (9, 13), 3, padding=1, batch=3)


def cases() -> dict[str, Case]:
    """Odd sizes, windows, schedules, rows that are stored as vectors and one by one, halos, batches."""
    scattered = draw_pattern(ODD, (8, 3), scattered=True)
    odd, thin = conv(3, 17, (10, 11), 3), Windows("max", 1, 3)
    return {
        "max": Case(IMAGE, WIDE, draw_pattern(IMAGE, (32,)), windows=PAIRS, activation="relu"),
        "max_negative": Case(IMAGE, WIDE, draw_pattern(IMAGE, (32,)), windows=PAIRS, negative=True),
        "mean": Case(IMAGE, WIDE, draw_pattern(IMAGE, (32,)), windows=MEAN, activation="silu"),
        "odd": Case(ODD, NARROW, draw_pattern(ODD, (8, 5)), windows=PAIRS, threads=3),
        "odd_mean": Case(ODD, FOUR, draw_pattern(ODD, (8,)), windows=MEAN, threads=3),
        "tall": Case(ODD, TALL, draw_pattern(ODD, (16,)), windows=PAIRS),
        "scattered": Case(ODD, NARROW, scattered, windows=PAIRS, activation="relu"),
        "scattered_mean": Case(ODD, WIDE, scattered, windows=MEAN),
        "mixed": Case(ODD, NARROW, draw_pattern(ODD, (8, 3)), windows=PAIRS),
        "halo": Case(ODD, FOUR, draw_pattern(ODD, (8,)), windows=PAIRS, y_halo=halo((1, 2), (3, 1))),
        "grouped": Case(IMAGE, WIDE, draw_pattern(IMAGE, (32,), scattered=True), windows=PAIRS, group_order=True),
        "full": Case(IMAGE, WIDE, full_pattern(IMAGE), windows=PAIRS, activation="relu"),
        "full_mean": Case(IMAGE, NARROW, full_pattern(IMAGE), windows=MEAN),
        "empty_mask": Case(IMAGE, NARROW, empty_pattern(IMAGE), windows=PAIRS),
        "three_lines": Case(odd, replace(TALL, tile=(3, 4)), draw_pattern(odd), windows=Windows("mean", 3, 2)),
        "three_pixels": Case(odd, replace(FOUR, tile=(1, 6)), draw_pattern(odd), windows=thin),
        "one_pixel_wide": Case(odd, replace(WIDE, tile=(2, 5)), draw_pattern(odd), windows=Windows("max", 2, 1)),
        "large": Case(odd, replace(TALL, tile=(8, 4)), draw_pattern(odd), windows=Windows("max", 8, 4)),
        "stride": Case(s := conv(4, 24, (17, 9), 3, padding=1, stride=2), FOUR, draw_pattern(s), windows=PAIRS),
        "stride_2x1": Case(s := conv(4, 24, (9, 8), 3, stride=(2, 1)), NARROW, draw_pattern(s), windows=MEAN),
        "pointwise": Case(s := conv(9, 33, (6, 8), 1, batch=2), WIDE, draw_pattern(s), windows=PAIRS),
        "one_window": Case(s := conv(9, 33, (2, 2), 1), replace(WIDE, tile=(2, 2)), draw_pattern(s), windows=PAIRS),
        "volume": Case(s := conv(3, 16, (3, 4, 6), 3, padding=1), FOUR, draw_pattern(s), windows=PAIRS),
        "conv_groups": Case(s := conv(8, 32, (6, 6), 3, groups=2), NARROW, draw_pattern(s, (8,)), windows=PAIRS),
    }


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite(cases())


@pytest.mark.parametrize("name", list(cases()))
def test_pooled_layers_equal_torch(suite: Suite, name: str) -> None:
    case = suite.cases[name]
    assert isinstance(case.schedule, RowsSchedule)
    assert row_walk.fits(case.workload(), case.schedule), "the case itself is wrong"
    suite.check(name)


def test_tiles_are_whole_windows() -> None:
    work = cases()["max"].workload()
    assert row_walk.fits(work, WIDE)
    assert not row_walk.fits(work, replace(WIDE, tile=(1, 6)))
    assert not row_walk.fits(work, replace(WIDE, tile=(2, 7)))
    assert not row_walk.fits(work, replace(WIDE, prefetch=True))
    assert not row_walk.fits(replace(work, windows=Windows("max", 1, 1)), replace(WIDE, even=True, tile=(1, 6)))
    assert not row_walk.fits(replace(work, windows=MEAN), replace(WIDE, even=True, tile=(2, 6)))


def test_what_belongs_to_no_window_is_not_computed() -> None:
    work = cases()["odd"].workload()
    assert row_walk.computed_pixels(work, NARROW) == 3 * 8 * 12
    assert row_walk.tiles_of(work, NARROW) == 3 * 4 * 3


@pytest.mark.parametrize("windows", [PAIRS, MEAN, Windows("max", 3, 3)])
@pytest.mark.parametrize("tile", [(2, 7), (1, 14), (2, 4), (4, 6)])
def test_a_schedule_is_refitted_to_small_tiles_of_whole_windows(tile: tuple[int, int], windows: Windows) -> None:
    target, chosen = parse_target("cpu", 2), RowsSchedule(16, 2, tile, "pixels", 1, prefetch=tile == (2, 4))
    work = Case(s := conv(4, 64, (120, 120), 3, padding=1), chosen, draw_pattern(s, (32,)), windows=windows).workload()
    fitted = refit(chosen, work, target)
    assert isinstance(fitted, RowsSchedule)
    assert row_walk.fits(work, fitted)
    assert fitted == chosen or fitted.pixels <= 9
    assert (fitted.lanes, fitted.vectors, fitted.split) == (chosen.lanes, chosen.vectors, chosen.split)


@pytest.mark.parametrize(
    ("size", "windows", "split", "wanted"),
    [
        ((224, 224), PAIRS, "pixels", True),
        ((128, 128), PAIRS, "pixels", True),
        ((112, 112), PAIRS, "pixels", False),
        ((224, 224), Windows("max", 7, 7), "pixels", False),
        ((2, 16384), PAIRS, "pixels", True),
        ((6, 16384), Windows("max", 2, 8192), "blocks", False),
        ((6, 5462), Windows("max", 2, 2730), "pixels", False),
    ],
)
def test_which_layers_gain(size: tuple[int, int], windows: Windows, split: Split, wanted: bool) -> None:
    chosen = RowsSchedule(16, 2, (1, 14), split, 1)
    work = Case(s := conv(4, 64, size), chosen, draw_pattern(s, (32,)), windows=windows).workload()
    assert may_pool(chosen, work, parse_target("cpu", 2)) == wanted


def test_threads_get_equal_shares() -> None:
    chosen = RowsSchedule(16, 2, (1, 2), "pixels", 1)
    shape = conv(4, 2**16, (18, 2))
    work = Case(shape, chosen, draw_pattern(shape, (2**16,)), windows=Windows("max", 6, 2)).workload()
    assert not may_pool(chosen, work, parse_target("cpu", 2)), "three tiles for two threads"
    assert may_pool(replace(chosen, split="blocks"), work, parse_target("cpu", 2))


@pytest.mark.parametrize("name", ["full", "full_mean"])
def test_not_a_number_stays(suite: Suite, name: str) -> None:
    kernel, tensors = suite.kernels[name], draw_tensors(suite.cases[name], name)
    tensors.x[0, :, 0, 5, 6] = torch.nan
    buffers = Buffers.of(kernel, tensors)
    BoundKernel(suite.library[name], kernel, buffers.x, buffers.y, None, None).run()
    wanted = torch.zeros(1, 40, 1, 4, 6, dtype=torch.bool)
    wanted[..., 2:4, 2:4] = True
    assert torch.equal(in_order(kernel, buffers.y).isnan(), wanted)


@pytest.mark.parametrize(
    ("schedule", "residual"),
    [(WIDE, True), (PixelsSchedule(16, 2, 4, "pixels"), False), (WinogradSchedule(16, 2, 2, 2, 2, "pixels"), False)],
)
def test_what_cannot_pool_refuses(schedule: Schedule, residual: bool) -> None:
    case = Case(IMAGE, schedule, draw_pattern(IMAGE, (32,)), windows=PAIRS, residual=residual)
    with pytest.raises(CodegenError, match="Pool its result instead"):
        make(case, draw_tensors(case, "max"))
