"""Candidates: buildable, ranked by a positive prediction, and every one of them correct."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fxprune.annotation import RowGroup, RowGroupPattern
from fxprune.codegen.cpu import pixel_tiles, row_walk
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.kernel import make_kernel
from fxprune.codegen.pixel_schedules import pixels_candidates, pixels_space
from fxprune.codegen.row_schedules import refit, rows_candidates
from fxprune.codegen.schedules import Candidate, predict_dense_us
from fxprune.codegen.target import CpuTarget
from fxprune.codegen.workload import ConvShape, Workload
from tests.codegen.suite import Case, Suite, conv, draw_pattern, empty_pattern, full_pattern, halo, linear

TARGETS = {
    "avx512": CpuTarget("sapphirerapids", 16, 32, 2, '{"kind": "llvm", "mcpu": "sapphirerapids"}'),
    "avx2": CpuTarget("haswell", 8, 16, 1, '{"kind": "llvm", "mcpu": "haswell"}'),
    "sse": CpuTarget("x86-64", 4, 16, 3, '{"kind": "llvm", "mcpu": "x86-64"}'),
}
SHAPES = {
    "stem": conv(3, 64, (56, 56), 7, stride=2, padding=3),
    "resnet_3x3": conv(64, 64, (56, 56), 3, padding=1),
    "resnet_7x7": conv(512, 512, (7, 7), 3, padding=1),
    "resnet_1x1": conv(256, 64, (56, 56), 1),
    "downsample": conv(256, 512, (28, 28), 1, stride=2),
    "batch": conv(16, 32, (14, 14), 3, padding=1, batch=8),
    "big_line": conv(64, 256, (112, 112), 1, batch=2),
    "dilated": conv(16, 24, (13, 11), 3, padding=2, dilation=2, groups=2),
    "one_pixel": conv(32, 32, (1, 1), 1),
    "one_line": conv(8, 8, (1, 3), (1, 2)),
    "one_token": linear(1, 512, 1000),
    "tokens": linear(197, 192, 768),
    "axes_1": conv(16, 16, (99,), (5,), padding=2, stride=(1,), dilation=(1,)),
    "axes_3": conv(8, 16, (4, 9, 9), (3, 3, 3), padding=1, stride=(1, 1, 1), dilation=(1, 1, 1)),
    "one_row": conv(5, 1, (5, 5), 3),
}
HEIGHTS = {"wide": (32,), "ragged": (7, 3), "single": (1,)}


def rows_work(shape: ConvShape, target: CpuTarget) -> Workload:
    return Case(shape, RowsSchedule(4, 1, (1, 1), "pixels"), empty_pattern(shape), target.threads).workload()


def pixels_work(shape: ConvShape, target: CpuTarget) -> Workload:
    return Case(shape, PixelsSchedule(4, 1, 1, "pixels"), empty_pattern(shape), target.threads).workload()


def patterns(shape: ConvShape) -> dict[str, RowGroupPattern]:
    """Cover a layer in every way the tests need."""
    drawn = {name: draw_pattern(shape, heights) for name, heights in HEIGHTS.items()}
    return drawn | {"empty": empty_pattern(shape), "full": full_pattern(shape)}


def all_rows(shape: ConvShape, target: CpuTarget) -> list[Candidate]:
    work = rows_work(shape, target)
    return [found for pattern in patterns(shape).values() for found in rows_candidates(work, pattern, target)]


def all_pixels(shape: ConvShape, target: CpuTarget) -> list[Candidate]:
    work = pixels_work(shape, target)
    return [found for pattern in patterns(shape).values() for found in pixels_candidates(work, pattern, target)]


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_row_candidates_fit_the_output_and_the_registers(shape: ConvShape, target: CpuTarget) -> None:
    work = rows_work(shape, target)
    for candidate in all_rows(shape, target):
        schedule = candidate.schedule
        assert isinstance(schedule, RowsSchedule)
        assert row_walk.fits(work, schedule)
        assert (schedule.tile[0] * schedule.tile[1] + 1) * schedule.vectors <= target.registers
        assert schedule.lanes <= target.lanes


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_pixel_candidates_fit_the_output_and_the_registers(shape: ConvShape, target: CpuTarget) -> None:
    work = pixels_work(shape, target)
    for candidate in all_pixels(shape, target):
        schedule = candidate.schedule
        assert isinstance(schedule, PixelsSchedule)
        assert pixel_tiles.fits(work, schedule)
        assert schedule.rows * schedule.vectors <= target.registers
        assert schedule.lanes <= target.lanes


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_every_layer_has_candidates_with_positive_predictions(shape: ConvShape, target: CpuTarget) -> None:
    work = rows_work(shape, target)
    for name, pattern in patterns(shape).items():
        found = list(rows_candidates(work, pattern, target))
        assert found, name
        schedules = [candidate.schedule for candidate in found]
        assert len(set(schedules)) == len(schedules), "the same kernel twice"
    for candidate in [*all_rows(shape, target), *all_pixels(shape, target)]:
        assert candidate.predicted_us > 0
    assert predict_dense_us(work, target) > 0


@pytest.mark.parametrize("name", ["resnet_3x3", "dilated", "tokens", "batch", "one_pixel"])
def test_every_candidate_can_be_written(name: str) -> None:
    shape, target = SHAPES[name], TARGETS["avx512"]
    pattern = draw_pattern(shape, (7, 3))
    weight = np.ones(pattern.shape, dtype=np.float32)
    found = {"rows": list(rows_candidates(rows_work(shape, target), pattern, target))}
    found["pixels"] = list(pixels_candidates(pixels_work(shape, target), pattern, target))
    for family, candidates in found.items():
        work = rows_work(shape, target) if family == "rows" else pixels_work(shape, target)
        for candidate in candidates:
            assert (
                make_kernel(work, candidate.schedule, weight, pattern, None).script("kernel").startswith("@T.prim_func")
            )


def test_weights_that_fill_the_cache_are_read_once_by_a_thread_in_some_candidate() -> None:
    """A block serves all tiles of a thread, so that it is read from memory while it is multiplied."""
    shape, target = SHAPES["resnet_7x7"], TARGETS["avx512"]
    for density, wanted in ((1.0, True), (0.05, False)):
        pattern = draw_pattern(shape, (32,), density)
        found = [one.schedule for one in rows_candidates(rows_work(shape, target), pattern, target)]
        assert any(isinstance(one, RowsSchedule) and one.chunk == 0 for one in found) is wanted


def test_fewer_cells_are_predicted_faster() -> None:
    shape, target = SHAPES["resnet_3x3"], TARGETS["avx512"]
    for candidates, work in ((rows_candidates, rows_work), (pixels_candidates, pixels_work)):
        times = [
            min(
                found.predicted_us
                for found in candidates(work(shape, target), draw_pattern(shape, (32,), density), target)
            )
            for density in (0.05, 0.2, 0.8)
        ]
        assert times == sorted(times)
        assert times[0] < times[-1]


def test_a_deep_layer_has_no_pixel_candidates() -> None:
    shape, target = SHAPES["axes_3"], TARGETS["avx512"]
    assert list(pixels_candidates(pixels_work(shape, target), full_pattern(shape), target)) == []


def test_a_batch_shared_by_images_is_not_split_in_two_ways() -> None:
    shape, target = SHAPES["batch"], TARGETS["avx512"]
    found = [one.schedule for one in pixels_candidates(pixels_work(shape, target), full_pattern(shape), target)]
    splits = {schedule.split for schedule in found if isinstance(schedule, PixelsSchedule)}
    assert splits == {"pixels"}


@pytest.mark.parametrize(
    ("shape", "height", "tail", "gapless"),
    [
        (conv(64, 64, (7, 7), 1), 8, 1, False),
        (conv(64, 64, (7, 7), 3, padding=1), 8, 1, True),
        (conv(64, 64, (14, 14), 1), 8, 1, False),
        (conv(64, 64, (14, 14), 3, padding=1), 8, 0, False),
        (conv(64, 64, (28, 28), 1), 8, 0, False),
        (conv(64, 64, (7, 7), 1), 1, 0, False),
    ],
)
def test_the_usual_tile_has_a_tail_where_that_saves_vectors(
    shape: ConvShape, height: int, tail: int, gapless: bool
) -> None:
    """Images of 7x7 are 3 vectors and a pixel; of one row that pixel takes as long as a vector."""
    target = TARGETS["avx512"]
    found = list(pixels_candidates(pixels_work(shape, target), draw_pattern(shape, (height,)), target))
    schedules = [one.schedule for one in found if isinstance(one.schedule, PixelsSchedule)]
    best = next(schedule for schedule in schedules if schedule.rows == height)
    assert (best.tail, best.gapless) == (tail, gapless)


@pytest.mark.parametrize(
    ("shape", "height", "parts"),
    [
        (conv(256, 64, (14, 14), 3, padding=1), 1, True),
        (conv(256, 64, (28, 28), 3, padding=1, stride=2), 8, True),
        (conv(512, 64, (7, 7), 3, padding=1), 1, True),
        (conv(64, 64, (56, 56), 3, padding=1, batch=2), 1, True),
        (conv(1024, 64, (14, 14), 1), 1, False),
        (conv(256, 256, (14, 14), 3, padding=1, groups=4), 1, False),
    ],
)
def test_channels_that_do_not_fit_the_l1_cache_are_copied_some_at_a_time(
    shape: ConvShape, height: int, parts: bool
) -> None:
    target, pattern = TARGETS["avx512"], draw_pattern(shape, (height,))
    for schedules in (pixels_candidates, pixels_space):
        found = [one.schedule for one in schedules(pixels_work(shape, target), pattern, target)]
        assert any(isinstance(one, PixelsSchedule) and one.channels for one in found) is parts


def test_a_tile_is_refitted_to_the_final_layout() -> None:
    """Without halo a 1x1 layer is one line of pixels, with halo it is image lines."""
    shape, target = conv(16, 32, (7, 7), 1), TARGETS["avx512"]
    schedule = RowsSchedule(16, 1, (1, 25), "pixels")
    plain = Case(shape, schedule, full_pattern(shape))
    around = Case(shape, schedule, full_pattern(shape), y_halo=halo((1, 1), (1, 1)))
    assert refit(schedule, plain.workload(), target) == schedule
    refitted = refit(schedule, around.workload(), target)
    assert isinstance(refitted, RowsSchedule)
    assert refitted != schedule
    assert row_walk.fits(around.workload(), refitted)
    sideways = PixelsSchedule(16, 4, 1, "blocks")
    assert refit(sideways, plain.workload(), target) == sideways


def test_a_tile_is_refitted_to_planes_that_touch() -> None:
    """Of 49 pixels and 15 cells behind them four vectors are computed; planes made by torch have nothing behind."""
    target, shape = TARGETS["avx512"], conv(16, 32, (7, 7), 1)
    schedule = PixelsSchedule(16, 1, 4, "blocks")
    case = Case(shape, schedule, full_pattern(shape))
    assert refit(schedule, case.workload(), target) == schedule
    touching = replace(case, x_spread=False).workload()
    assert refit(schedule, touching, target) == replace(schedule, vectors=3)
    assert pixel_tiles.fits(touching, replace(schedule, vectors=3))


def test_tiles_with_a_tail_are_tried_beside_those_on_whole_lines() -> None:
    target, shape = TARGETS["avx512"], conv(64, 64, (14, 14), 1)
    touching = replace(Case(shape, PixelsSchedule(16, 8, 3, "pixels"), full_pattern(shape)), x_spread=False).workload()
    for work, tails in ((pixels_work(shape, target), {0, 1}), (touching, {1})):
        found = [one.schedule for one in pixels_candidates(work, draw_pattern(shape, (8,)), target)]
        wide = [one for one in found if isinstance(one, PixelsSchedule) and (one.rows, one.vectors) == (8, 3)]
        assert {one.tail for one in wide} == tails


ODD = conv(5, 35, (7, 13), 3, padding=1, stride=(2, 1))
ODD_PATTERN = draw_pattern(ODD, (16, 3, 5), scattered=True)


@pytest.fixture(scope="module")
def suite() -> Suite:
    target = TARGETS["avx512"]
    found = [
        *rows_candidates(rows_work(ODD, target), ODD_PATTERN, target),
        *pixels_candidates(pixels_work(ODD, target), ODD_PATTERN, target),
    ]
    cases = {
        f"candidate_{index}": Case(ODD, candidate.schedule, ODD_PATTERN, activation="relu", residual=True)
        for index, candidate in enumerate(found)
    }
    return Suite(cases)


def test_every_candidate_of_an_odd_layer_equals_torch(suite: Suite) -> None:
    families = {type(case.schedule) for case in suite.cases.values()}
    assert families == {RowsSchedule, PixelsSchedule}
    for name in suite.cases:
        suite.check(name)


def test_blocks_in_order_are_tried_where_rows_would_be_stored_one_by_one() -> None:
    shape, target = SHAPES["resnet_3x3"], TARGETS["avx512"]
    work = rows_work(shape, target)
    rows = np.arange(0, shape.channels_out, 2, dtype=np.int32)
    scattered = RowGroupPattern(
        (shape.channels_out, shape.columns), (RowGroup(rows, np.arange(shape.columns, dtype=np.int32)),)
    )

    def ordered(pattern: RowGroupPattern, *, channels_in_order: bool) -> int:
        found = rows_candidates(work, pattern, target, channels_in_order=channels_in_order)
        return sum(isinstance(one.schedule, RowsSchedule) and one.schedule.ordered for one in found)

    assert ordered(scattered, channels_in_order=True) > 0
    assert ordered(scattered, channels_in_order=False) == 0
    assert ordered(draw_pattern(shape, (32,)), channels_in_order=True) == 0
    cells = draw_pattern(shape, (1,), 0.02)
    assert ordered(cells, channels_in_order=True) == 0, "nearly dense blocks for a few cells"
    short = draw_pattern(shape, (1,), 0.5)
    assert ordered(short, channels_in_order=True) > 0, "single rows fill a vector only together"
    assert ordered(short, channels_in_order=False) > 0
