"""Kernels that overwrite their residual: the same numbers, and refused where an output is computed twice."""

from __future__ import annotations

from functools import partial

import pytest

from fxprune.codegen.cpu.depthwise import DepthwiseSchedule
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.schedules import Schedule, may_overwrite
from fxprune.codegen.workload import ConvShape
from tests.codegen.suite import Case, Suite, conv, draw_pattern

FLAT, LINES, ODD = conv(24, 48, (6, 10), 1), conv(20, 32, (6, 10), 3, padding=1, batch=2), conv(20, 33, (7, 9), 1)
HALO = ((0, 0), (1, 1), (1, 2))


SUM = partial(Case, residual=True, in_place=True, activation="relu")


def rows_cases() -> dict[str, Case]:
    vectors, mixed = draw_pattern(FLAT, (16,)), conv(20, 45, (7, 9), 1)
    ragged = partial(SUM, mixed, pattern=draw_pattern(mixed, (13,)))
    return {
        "vectors": SUM(FLAT, RowsSchedule(8, 2, (1, 5), "pixels"), vectors),
        "vectors_blocks": SUM(LINES, RowsSchedule(8, 2, (2, 5), "blocks"), draw_pattern(LINES, (16,))),
        "asking_for_the_next": SUM(FLAT, RowsSchedule(8, 2, (1, 4), "pixels", prefetch=True), vectors),
        "ragged": ragged(schedule=RowsSchedule(8, 2, (1, 7), "pixels")),
        "ragged_blocks": ragged(schedule=RowsSchedule(8, 2, (1, 7), "blocks")),
        "lanes": SUM(ODD, RowsSchedule(8, 1, (1, 7), "pixels"), draw_pattern(ODD, (3,))),
        "halo": SUM(
            LINES, RowsSchedule(8, 1, (1, 5), "pixels"), draw_pattern(LINES, (8,)), y_halo=HALO, residual_halo=HALO
        ),
    }


def pixels_cases() -> dict[str, Case]:
    run, image = conv(24, 48, (4, 8), 1), conv(20, 32, (6, 10), 3, padding=1)
    return {
        "runs": SUM(run, PixelsSchedule(8, 4, 2, "pixels"), draw_pattern(run, (4,))),
        "lines": SUM(LINES, PixelsSchedule(8, 4, 1, "pixels"), draw_pattern(LINES, (4,))),
        "lines_blocks": SUM(image, PixelsSchedule(8, 2, 3, "blocks"), draw_pattern(image, (2,))),
    }


CASES = rows_cases() | pixels_cases()


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_residual_is_overwritten_with_the_result(suite: Suite, name: str) -> None:
    case = CASES[name]
    assert may_overwrite(case.schedule, case.workload())
    suite.check(name)


@pytest.mark.parametrize(
    ("shape", "schedule"),
    [
        (FLAT, RowsSchedule(8, 2, (1, 7), "pixels")),
        (LINES, RowsSchedule(8, 2, (1, 3), "pixels")),
        (FLAT, PixelsSchedule(8, 4, 3, "pixels")),
        (FLAT, DepthwiseSchedule(8, 1, 4)),
    ],
)
def test_overlapping_tiles_may_not_overwrite(shape: ConvShape, schedule: Schedule) -> None:
    case = SUM(shape, schedule, draw_pattern(shape, (16,)), y_spread=False)
    assert not may_overwrite(schedule, case.workload())


def test_an_overlapping_tile_would_add_the_residual_twice() -> None:
    """What the check above guards against."""
    schedule = RowsSchedule(8, 2, (1, 7), "pixels")
    with pytest.raises(AssertionError):
        Suite({"twice": SUM(FLAT, schedule, draw_pattern(FLAT, (16,)))}).check("twice")
