"""Winograd candidates: legal, buildable, ranked by their products, and every one of them correct."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fxprune.codegen.cpu.winograd_plan import WinogradSchedule, fits, phase_products
from fxprune.codegen.schedules import executed_share, predict_dense_us
from fxprune.codegen.target import CpuTarget, parse_target
from fxprune.codegen.winograd_schedules import weights_us, winograd_candidates, winograd_space
from fxprune.codegen.workload import ConvShape
from tests.codegen.suite import Case, Suite, conv, full_pattern
from tests.codegen.test_rows import WIDE
from tests.codegen.test_schedules import SHAPES, TARGETS, rows_work

SMALL = {
    "stem": conv(3, 32, (20, 22), 7, padding=3, stride=2),
    "seven": conv(20, 48, (7, 7), 3, padding=1),
    "batch": conv(6, 16, (9, 9), 5, padding=2, batch=2),
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_point_is_legal(shape: ConvShape, target: CpuTarget) -> None:
    work = rows_work(shape, target)
    space = [candidate.schedule for candidate in winograd_space(work, target)]
    assert len(set(space)) == len(space)
    for schedule in [*space, *(candidate.schedule for candidate in winograd_candidates(work, target))]:
        assert isinstance(schedule, WinogradSchedule)
        assert fits(shape, schedule)
        products = sum(phase_products(shape, schedule.outputs))
        assert 0 < schedule.tiles * schedule.vectors <= target.registers
        assert products > schedule.outputs


def test_fewer_products_are_predicted_to_take_less_time() -> None:
    target, work = TARGETS["avx512"], rows_work(SHAPES["resnet_3x3"], TARGETS["avx512"])
    found = list(winograd_candidates(work, target))
    assert {candidate.schedule.outputs for candidate in found} == {4}, "14 tiles of 6 products, and not 12 of 7"  # type: ignore[union-attr]
    assert all(0.4 < one.predicted_us / predict_dense_us(work, target) < 0.6 for one in found)


def test_weights_come_from_memory_once_for_every_thread_that_reads_them() -> None:
    work = rows_work(SHAPES["resnet_3x3"], TARGETS["avx512"])
    shape = work.shape
    schedule = WinogradSchedule(16, 2, 4, 2, 1, "pixels")
    whole = weights_us(work, schedule)
    assert whole == pytest.approx(shape.channels_out * shape.channels_in * 3 * 6 * 4 / 17.5e3)
    assert weights_us(work, replace(schedule, split="blocks")) == pytest.approx(whole / work.threads)


def test_threads_share_rows_where_an_image_has_few_lines() -> None:
    target = TARGETS["avx512"]
    low = [one.schedule for one in winograd_candidates(rows_work(SHAPES["resnet_7x7"], target), target)]
    high = [one.schedule for one in winograd_candidates(rows_work(SHAPES["resnet_3x3"], target), target)]
    assert {one.split for one in low} == {"pixels", "blocks"}  # type: ignore[union-attr]
    assert {one.split for one in high} == {"pixels"}  # type: ignore[union-attr]


def test_every_candidate_equals_torch() -> None:
    target = parse_target("cpu", 2)
    cases = {
        f"{name}_{number}": Case(shape, candidate.schedule, full_pattern(shape), activation="relu")
        for name, shape in SMALL.items()
        for number, candidate in enumerate(winograd_candidates(rows_work(shape, target), target))
    }
    assert len(cases) >= 6
    suite = Suite(cases, target)
    for name in cases:
        suite.check(name)


def test_a_stem_executes_less_than_half_of_its_multiply_adds() -> None:
    assert executed_share(WinogradSchedule(16, 1, 4, 4, 8, "pixels"), SHAPES["stem"]) == pytest.approx(13 / 28)
    assert executed_share(WIDE, SHAPES["stem"]) == 1
