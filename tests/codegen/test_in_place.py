"""Kernels that overwrite their residual: the same numbers, and refused where an output is computed twice."""

from __future__ import annotations

import pytest

from fxprune.codegen.cpu.depthwise import DepthwiseSchedule
from fxprune.codegen.cpu.pixels import PixelsSchedule
from fxprune.codegen.cpu.rows import RowsSchedule
from fxprune.codegen.schedules import Schedule, may_overwrite
from tests.codegen.suite import Case, Suite, conv, draw_pattern

FLAT, LINES, ODD = conv(24, 48, (6, 10), 1), conv(20, 32, (6, 10), 3, padding=1, batch=2), conv(20, 33, (7, 9), 1)
HALO = ((0, 0), (1, 1), (1, 2))


def _case(shape: object, schedule: Schedule, height: int, **options: object) -> Case:
    pattern = draw_pattern(shape, (height,))  # type: ignore[arg-type]
    return Case(shape, schedule, pattern, residual=True, in_place=True, activation="relu", **options)  # type: ignore[arg-type]


CASES = {
    "vectors": _case(FLAT, RowsSchedule(8, 2, (1, 5), "pixels"), 16),
    "vectors_blocks": _case(LINES, RowsSchedule(8, 2, (2, 5), "blocks"), 16),
    "asking_for_the_next": _case(FLAT, RowsSchedule(8, 2, (1, 4), "pixels", prefetch=True), 16),
    "ragged": _case(conv(20, 45, (7, 9), 1), RowsSchedule(8, 2, (1, 7), "pixels"), 13),
    "ragged_blocks": _case(conv(20, 45, (7, 9), 1), RowsSchedule(8, 2, (1, 7), "blocks"), 13),
    "lanes": _case(ODD, RowsSchedule(8, 1, (1, 7), "pixels"), 3),
    "halo": _case(LINES, RowsSchedule(8, 1, (1, 5), "pixels"), 8, y_halo=HALO, residual_halo=HALO),
    "runs": _case(conv(24, 48, (4, 8), 1), PixelsSchedule(8, 4, 2, "pixels"), 4),
    "lines": _case(LINES, PixelsSchedule(8, 4, 1, "pixels"), 4),
    "lines_blocks": _case(conv(20, 32, (6, 10), 3, padding=1), PixelsSchedule(8, 2, 3, "blocks"), 2),
}


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
def test_overlapping_tiles_may_not_overwrite(shape: object, schedule: Schedule) -> None:
    case = _case(shape, schedule, 16)
    assert not may_overwrite(schedule, case.workload())


def test_an_overlapping_tile_would_add_the_residual_twice() -> None:
    """What the check above guards against."""
    schedule = RowsSchedule(8, 2, (1, 7), "pixels")
    with pytest.raises(AssertionError):
        Suite({"twice": _case(FLAT, schedule, 16)}).check("twice")
