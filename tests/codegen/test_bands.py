"""Pixel-lane kernels on activations that lie in bands, one for each thread, against torch in float64."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from fxprune.codegen.cpu import pixel_tiles
from fxprune.codegen.cpu.bands import bands_of, cut_freely, may_cut
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.workload import ConvShape, Triple
from tests.codegen.suite import Case, Suite, conv, draw_pattern, empty_pattern, halo, single_cells

TILE = PixelsSchedule(8, 2, 3, "pixels")

LAYERS = {
    "kernel_3": conv(5, 11, (8, 17), 3, padding=1),
    "kernel_3_stride_2": conv(5, 11, (16, 34), 3, padding=1, stride=2),
    "kernel_1_stride_2": conv(6, 9, (16, 34), 1, stride=2),
    "kernel_7_stride_2": conv(3, 8, (24, 40), 7, padding=3, stride=2),
    "kernel_7_over_many_bands": conv(3, 8, (6, 32), 7, padding=3),
    "kernel_1x3": conv(4, 9, (6, 33), (1, 3), padding=halo((0, 0), (1, 1))),
    "uneven_padding": conv(4, 9, (6, 33), 4, padding=halo((1, 2), (2, 1))),
    "dilation_2": conv(4, 9, (12, 22), 3, padding=2, dilation=2),
    "groups": conv(6, 10, (6, 33), 3, padding=1, groups=2),
    "batch_2": conv(4, 9, (9, 23), 3, padding=1, batch=2),
}
"""Layers that copy their input."""

POINTS = {
    "even": conv(7, 12, (12, 16), 1),
    "odd": conv(7, 12, (6, 35), 1),
    "batch_2": conv(7, 12, (9, 23), 1, batch=2),
    "groups": conv(6, 12, (6, 33), 1, groups=3),
}
"""Layers that read it in place."""


def copying() -> dict[str, Case]:
    """Input, output or both in bands, all options of a schedule."""
    schedules = {
        "": TILE,
        "_block": replace(TILE, by_block=True),
        "_gapless": replace(TILE, gapless=True),
        "_parts": replace(TILE, channels=2),
    }
    cases: dict[str, Case] = {}
    for (name, shape), (x, y) in itertools.product(LAYERS.items(), ((True, True), (False, True), (True, False))):
        (option, schedule), residual = list(schedules.items())[len(cases) % 4], len(cases) % 3 > 0
        schedule = replace(schedule, channels=0) if shape.groups > 1 else schedule
        cases[f"{name}{option}_{'x' if x else ''}{'y' if y else ''}"] = Case(
            shape,
            schedule,
            draw_pattern(shape, (2, 1), scattered=True, left_out=len(cases) % 2),
            threads=3 if shape.batch == 2 else 2,
            activation=("relu", None)[len(cases) % 2],
            residual=residual,
            in_place=residual and len(cases) % 2 > 0,
            x_bands=x,
            y_bands=y,
        )
    return cases


def in_place() -> dict[str, Case]:
    """Input, output and residual in bands."""
    cases: dict[str, Case] = {}
    for (name, shape), tail, overwrites in itertools.product(POINTS.items(), (0, 1), (False, True)):
        case = Case(
            shape,
            PixelsSchedule(8, 2, 3, "pixels", by_block=len(cases) % 3 == 0, tail=tail),
            draw_pattern(shape, (2,), scattered=True),
            threads=3 if shape.batch == 2 else 2,
            activation="relu",
            residual=overwrites or len(cases) % 4 == 0,
            x_bands=True,
            y_bands=True,
        )
        once = pixel_tiles.computes_once(case.workload(), PixelsSchedule(8, 2, 3, "pixels", tail=tail))
        cases[f"points_{name}{'_tail' if tail else ''}{'_over' if overwrites else ''}"] = replace(
            case, in_place=overwrites and once
        )
    return cases


def extremes() -> dict[str, Case]:
    """No weights, and every weight by itself."""
    cells = conv(3, 27, (6, 33), 3, padding=1)
    empty = Case(cells, TILE, empty_pattern(cells), activation="relu", x_bands=True, y_bands=True)
    return {"empty": empty, "cells_one_by_one": replace(empty, pattern=single_cells(cells), activation=None)}


CASES = copying() | in_place() | extremes()


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_equals_torch(suite: Suite, name: str) -> None:
    case, work = CASES[name], CASES[name].workload()
    assert (work.input_bands, work.bands) == tuple(
        case.threads if cut else 1 for cut in (case.x_bands, case.y_bands)
    ), "the case itself is wrong"
    assert isinstance(case.schedule, PixelsSchedule)
    assert pixel_tiles.fits(work, case.schedule), "the case itself is wrong"
    suite.check(name)


@pytest.mark.parametrize(
    ("batch", "spatial", "threads", "bands"),
    [
        (1, (1, 14, 14), 2, 2),
        (1, (1, 28, 28), 4, 4),
        (1, (1, 7, 7), 2, 1),
        (1, (1, 14, 14), 4, 1),
        (1, (1, 14, 14), 7, 1),
        (1, (2, 14, 14), 2, 1),
        (2, (1, 14, 14), 2, 1),
        (2, (1, 24, 24), 3, 3),
        (1, (1, 14, 14), 1, 1),
    ],
    ids=["halves", "quarters", "odd_lines", "uneven", "too_small", "depth", "batch", "some_images", "one_thread"],
)
def test_images_are_cut_into_whole_lines(batch: int, spatial: Triple, threads: int, bands: int) -> None:
    assert bands_of(batch, spatial, threads) == bands


@pytest.mark.parametrize(
    ("shape", "cuts"),
    [
        (conv(4, 4, (28, 28), 3, padding=1), True),
        (conv(4, 4, (28, 28), 3, padding=1, stride=2), True),
        (conv(4, 4, (28, 28), 1, stride=2), True),
        (conv(4, 4, (224, 224), 7, padding=3, stride=2), True),
        (conv(4, 4, (30, 30), 3), False),
        (conv(4, 4, (27, 27), 3, padding=1, stride=2), False),
        (conv(4, 4, (14, 14), 3, padding=1, stride=2), False),
    ],
    ids=["same", "halved", "halved_points", "stem", "no_padding", "odd_input", "odd_output"],
)
def test_a_layer_computes_bands_from_bands(shape: ConvShape, cuts: bool) -> None:
    """A band of the output begins where one of the input does, only then a band is an image with padding of its own."""
    assert may_cut(shape, 2) is cuts


def test_what_lies_in_bands_in_a_trial() -> None:
    """A 1x1 layer's input lies as its output does, another layer's may be in bands alone."""
    entering, points = conv(4, 4, (14, 14), 3, padding=1, stride=2), conv(4, 4, (14, 14), 1)
    for shape, bands in ((entering, (2, 1)), (points, (2, 2)), (conv(4, 4, (7, 14), 1), (1, 1))):
        work = cut_freely(Case(shape, TILE, empty_pattern(shape)).workload())
        assert (work.input_bands, work.bands) == bands
