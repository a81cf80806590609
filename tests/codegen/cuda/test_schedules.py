"""The cost model of GPU tiles: floors hold, times fall with density, the better tile wins."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fxprune.codegen.cuda.costs import count_steps, floor_us
from fxprune.codegen.cuda.schedules import TILES, find_candidates, predict_dense_us, predict_us
from fxprune.codegen.cuda.target import read_cuda_target
from fxprune.codegen.cuda.tensor_tile import TensorSchedule
from fxprune.codegen.cuda.tile import LARGEST_GRID_Y, find_schedule_fault
from fxprune.codegen.workload import ConvShape, Workload
from tests.codegen.cuda.suite import SMALL, cuda_case, make
from tests.codegen.suite import conv, draw_pattern, draw_tensors, full_pattern, linear

H200 = read_cuda_target({"kind": "cuda", "arch": "sm_90a"})


def _work(shape: ConvShape) -> Workload:
    return cuda_case(shape, SMALL, full_pattern(shape)).workload()


_SHAPES = {
    "3x3, batch 64": conv(256, 256, (14, 14), 3, padding=1, batch=64),
    "3x3, batch 1": conv(256, 256, (14, 14), 3, padding=1),
    "1x1, batch 3": conv(512, 128, (28, 28), 1, batch=3),
    "linear": linear(3, 512, 1000),
    "7x7": conv(3, 64, (56, 56), 7, stride=2, padding=3, batch=2),
    "groups": conv(64, 64, (14, 14), 3, padding=1, groups=4),
}


@pytest.mark.parametrize("name", _SHAPES)
def test_every_tile_can_compute_every_layer(name: str) -> None:
    work = _work(_SHAPES[name])
    assert all(find_schedule_fault(work, tile) is None for tile in TILES)


@pytest.mark.parametrize("name", _SHAPES)
def test_no_prediction_is_below_the_floor(name: str) -> None:
    work, pattern = _work(_SHAPES[name]), draw_pattern(_SHAPES[name], (32, 9), 0.3)
    floor = floor_us(work, pattern.stored, H200)
    candidates = find_candidates(work, pattern, H200)
    assert [candidate.predicted_us for candidate in candidates] == sorted(c.predicted_us for c in candidates)
    assert all(candidate.predicted_us >= floor for candidate in candidates)


def test_tf32_competes_with_strict_float32_where_it_is_allowed() -> None:
    shape = _SHAPES["3x3, batch 64"]
    work, pattern = _work(shape), draw_pattern(shape, (128,), 0.2)
    rounded = replace(H200, precision="tf32")
    strict = {c.schedule: c.predicted_us for c in find_candidates(work, pattern, H200)}
    both = {c.schedule: c.predicted_us for c in find_candidates(work, pattern, rounded)}
    assert strict.items() < both.items()
    added = {schedule: us for schedule, us in both.items() if schedule not in strict}
    assert all(isinstance(schedule, TensorSchedule) and schedule.cell_bytes == 4 for schedule in added)
    assert min(added.values()) < min(strict.values())
    assert min(added.values()) >= floor_us(work, pattern.stored, rounded)
    assert predict_dense_us(work, rounded) < predict_dense_us(work, H200)


def test_fewer_columns_take_less_time() -> None:
    shape = _SHAPES["3x3, batch 64"]
    work = _work(shape)
    times = [
        find_candidates(work, draw_pattern(shape, (32,), density), H200)[0].predicted_us
        for density in (1.0, 0.5, 0.2, 0.1)
    ]
    assert times == sorted(times, reverse=True)
    assert times[0] > predict_dense_us(work, H200) > times[2]


def test_low_groups_take_low_tiles_and_high_groups_high_ones() -> None:
    shape = _SHAPES["3x3, batch 64"]
    work = _work(shape)
    heights = {
        height: find_candidates(work, draw_pattern(shape, (height,), 0.1), H200)[0].schedule.rows
        for height in (8, 16, 32, 64)
    }
    assert heights[8] <= heights[16] <= heights[32] <= heights[64]
    assert heights[8] < heights[64]


def test_the_steps_are_those_of_the_table() -> None:
    shape = conv(16, 75, (6, 6), 3, padding=1)
    pattern = draw_pattern(shape, (20, 7), 0.3, left_out=9)
    case = cuda_case(shape, SMALL, pattern)
    kernel = make(case, draw_tensors(case.layer, "steps"))
    assert sorted(count_steps(pattern, SMALL)) == sorted(kernel.table.steps)


def test_a_grid_too_long_for_one_order_takes_the_other() -> None:
    shape = conv(8, 16, (4096, 2048), 1)
    pattern = draw_pattern(shape, (16,), 0.5)
    work = _work(shape)
    for candidate in find_candidates(work, pattern, H200):
        assert max(make_kernel_grid(work, candidate.schedule.order, candidate.schedule.pixels)[1:]) <= LARGEST_GRID_Y


def make_kernel_grid(work: Workload, order: str, pixels: int) -> tuple[int, int]:
    """Return the axes of a grid of a layer with few blocks."""
    tiles = -(-work.shape.pixels // pixels)
    return (tiles, 2) if order == "pixels" else (2, tiles)


def test_an_input_that_fits_no_cache_is_read_once() -> None:
    shape = conv(64, 64, (56, 56), 3, padding=1, batch=64)
    pattern = draw_pattern(shape, (32,), 0.2)
    assert {c.schedule.order for c in find_candidates(_work(shape), pattern, H200)} == {"blocks"}
    small = _SHAPES["3x3, batch 1"]
    assert {c.schedule.order for c in find_candidates(_work(small), draw_pattern(small), H200)} == {"pixels"}


def test_predictions_follow_the_gpu() -> None:
    shape = _SHAPES["3x3, batch 64"]
    work, pattern = _work(shape), draw_pattern(shape, (32,), 0.2)
    slow = read_cuda_target({"kind": "cuda", "arch": "sm_86"})
    assert predict_us(work, pattern, TILES[0], slow) > predict_us(work, pattern, TILES[0], H200)
