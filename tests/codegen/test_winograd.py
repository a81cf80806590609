"""The Winograd kernel against torch in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fxprune.codegen.build import Library
from fxprune.codegen.cpu import winograd_plan
from fxprune.codegen.cpu.winograd_plan import WinogradSchedule
from fxprune.codegen.kernel import BoundKernel, make_kernel
from fxprune.codegen.target import parse_target
from fxprune.codegen.workload import ConvShape
from tests.codegen.suite import (
    TOLERANCE,
    Case,
    Suite,
    conv,
    draw_tensors,
    full_pattern,
    guards_are_intact,
    halo,
    largest_error,
    place,
    poisoned,
    view,
)

FOUR = WinogradSchedule(16, 1, 4, 3, 4, "pixels")
TWO = WinogradSchedule(16, 2, 2, 2, 3, "blocks")
HALF = WinogradSchedule(8, 1, 3, 4, 2, "pixels")
NARROW = WinogradSchedule(4, 2, 5, 1, 1, "blocks")

IMAGE = conv(5, 32, (7, 11), 3, padding=1)
BATCH = conv(3, 48, (5, 6), 3, padding=1, batch=3)
FIRST_AND_LAST = halo((2, 3), (1, 2))


def _case(shape: ConvShape, schedule: WinogradSchedule, **options: object) -> Case:
    return Case(shape, schedule, full_pattern(shape), **options)  # type: ignore[arg-type]


CASES = {
    "outputs_4": _case(IMAGE, FOUR),
    "outputs_2": _case(IMAGE, TWO),
    "outputs_3": _case(IMAGE, HALF),
    "outputs_5": _case(IMAGE, NARROW),
    "stem": _case(conv(3, 64, (23, 21), 7, padding=3, stride=2), FOUR, activation="relu"),
    "stem_narrow": _case(conv(3, 16, (23, 21), 7, padding=3, stride=2), replace(HALF, outputs=4)),
    "stride_2": _case(conv(6, 32, (9, 10), 3, padding=1, stride=2), FOUR),
    "stride_3": _case(conv(6, 32, (12, 17), 5, padding=2, stride=3), TWO),
    "stride_2x1": _case(conv(4, 16, (8, 9), 3, padding=1, stride=(2, 1)), HALF),
    "stride_1x2": _case(conv(4, 16, (8, 19), 3, padding=1, stride=(1, 2)), HALF),
    "kernel_2": _case(conv(4, 16, (6, 7), 2, padding=halo((0, 1), (0, 1))), NARROW),
    "kernel_5": _case(conv(3, 32, (9, 8), 5, padding=2), HALF),
    "kernel_1x3": _case(conv(6, 16, (8, 9), (1, 3), padding=halo((0, 0), (1, 1))), FOUR),
    "kernel_5x3": _case(conv(3, 16, (8, 9), (5, 3)), TWO),
    "no_padding": _case(conv(4, 32, (8, 9), 3), FOUR),
    "padding_uneven": _case(conv(4, 32, (6, 7), 3, padding=halo((2, 0), (1, 3))), HALF),
    "dilated_down": _case(conv(4, 16, (9, 10), 3, padding=halo((2, 2), (1, 1)), dilation=(2, 1)), FOUR),
    "axes_1": _case(conv(6, 16, (19,), (3,), padding=1, stride=(1,), dilation=(1,)), replace(FOUR, lines=1)),
    "channels_of_a_vector": _case(conv(16, 32, (6, 9), 3, padding=1), FOUR),
    "channels_and_a_rest": _case(conv(37, 32, (6, 9), 3, padding=1), FOUR),
    "one_channel": _case(conv(1, 16, (6, 9), 3, padding=1), FOUR),
    "rows_ragged": _case(conv(5, 43, (6, 9), 3, padding=1), FOUR, residual=True, activation="relu"),
    "rows_ragged_blocks": _case(conv(5, 41, (6, 9), 3, padding=1), TWO, activation="silu"),
    "one_row": _case(conv(5, 1, (6, 7), 3, padding=1), HALF),
    "one_line": _case(conv(5, 16, (1, 7), 3, padding=1), replace(FOUR, lines=1)),
    "one_tile": _case(conv(5, 16, (4, 4), 3, padding=1), FOUR),
    "batch_3": _case(BATCH, FOUR, residual=True),
    "batch_3_blocks": _case(BATCH, TWO, residual=True, activation="hardtanh", activation_args=(-1.0, 1.0)),
    "halos": _case(
        BATCH, HALF, x_halo=halo((2, 1), (3, 2)), y_halo=FIRST_AND_LAST, residual=True, residual_halo=FIRST_AND_LAST
    ),
    "more_threads_than_parts": _case(IMAGE, FOUR, threads=7),
    "more_threads_than_blocks": _case(IMAGE, TWO, threads=5, y_halo=halo((1, 1), (1, 1))),
    "one_thread": _case(IMAGE, FOUR, threads=1),
    "no_bias": _case(IMAGE, FOUR, bias=False),
    "negative": _case(IMAGE, FOUR, negative=True, bias=False, activation="relu"),
    "group_order": _case(conv(5, 43, (6, 9), 3, padding=1), FOUR, group_order=True),
}


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_equals_torch(suite: Suite, name: str) -> None:
    case = CASES[name]
    assert isinstance(case.schedule, WinogradSchedule)
    assert winograd_plan.supports(case.shape), "the case itself is wrong"
    assert winograd_plan.fits(case.shape, case.schedule), "the case itself is wrong"
    suite.check(name)


def test_a_second_run_gives_the_same_bits(suite: Suite) -> None:
    first, _ = suite.run("more_threads_than_parts")
    second, _ = suite.run("more_threads_than_parts")
    assert torch.equal(first, second)


def test_channels_in_another_order_and_among_channels_of_padding() -> None:
    case = CASES["channels_and_a_rest"]
    tensors = draw_tensors(case, "shuffled")
    where = torch.randperm(45, generator=torch.Generator().manual_seed(0))[:37]
    work = case.workload()
    work = replace(work, x=replace(work.x, channels=45), y=replace(work.y, channels=48))
    positions = where.numpy().astype(np.int32)
    kernel = make_kernel(work, case.schedule, tensors.weight, case.pattern, tensors.bias, input_map=positions)
    library = Library({"shuffled": kernel.script("shuffled")}, parse_target("cpu", 2))
    spread = torch.full((1, 45, 1, 6, 9), torch.nan).index_copy_(1, where, tensors.x)
    y, scratch = poisoned(work.y.numel), poisoned(kernel.scratch_cells)
    x = place(spread, work.x, case.shape.padding)
    BoundKernel(library["shuffled"], kernel, x, y, None, scratch).run()
    assert guards_are_intact(y)
    assert guards_are_intact(scratch)
    assert largest_error(view(y, work.y)[:, :32], tensors.reference(case)) <= TOLERANCE


def test_a_number_that_is_none_reaches_its_tiles_only(suite: Suite) -> None:
    case, kernel = CASES["outputs_4"], suite.kernels["outputs_4"]
    tensors = draw_tensors(case, "nan")
    tensors.x[0, 2, 0, 3, 9] = torch.nan
    x, y = place(tensors.x, kernel.work.x, case.shape.padding), poisoned(kernel.work.y.numel)
    BoundKernel(suite.library["outputs_4"], kernel, x, y, None, poisoned(kernel.scratch_cells)).run()
    missing, direct = view(y, kernel.work.y).isnan(), tensors.reference(case).isnan()
    assert bool((missing | ~direct).all()), "all outputs that have none in torch"
    assert not bool(missing[..., :2, :].any() or missing[..., 5:, :].any() or missing[..., :4].any())


@pytest.mark.parametrize(
    "shape",
    [
        conv(4, 16, (8, 8), 1),
        conv(4, 16, (8, 8), (3, 1)),
        conv(4, 16, (8, 8), 2, stride=2),
        conv(4, 16, (9, 9), 3, dilation=2),
        conv(4, 16, (8, 8), 3, groups=2),
        conv(4, 16, (4, 8, 8), (3, 3, 3), stride=(1, 1, 1), dilation=(1, 1, 1)),
    ],
)
def test_layers_without_products_to_save_are_left_alone(shape: ConvShape) -> None:
    assert not winograd_plan.supports(shape)


def test_what_does_not_fit() -> None:
    assert winograd_plan.fits(IMAGE, FOUR)
    assert not winograd_plan.fits(IMAGE, replace(FOUR, outputs=6)), "8 products lose too much"
    assert not winograd_plan.fits(IMAGE, replace(FOUR, lines=8)), "the image has 7 lines"
    assert not winograd_plan.fits(conv(5, 16, (7, 3), 3, padding=1), FOUR), "a line has 3 outputs"
