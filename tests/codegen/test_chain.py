"""Two kernels in a row: the first stores its channels in the order of its blocks, the second reads them there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fxprune.codegen.build import Library
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.format import packed_lanes
from fxprune.codegen.kernel import BoundKernel, LayerKernel, make_kernel
from fxprune.codegen.target import parse_target
from fxprune.codegen.workload import Layout
from fxprune.errors import CodegenError
from tests.codegen.suite import (
    TOLERANCE,
    Case,
    Suite,
    conv,
    draw_pattern,
    draw_tensors,
    full_pattern,
    halo,
    largest_error,
    linear,
    place,
    poisoned,
    view,
)

HALF = RowsSchedule(8, 1, (1, 3), "pixels", 2)
QUAD = RowsSchedule(4, 1, (2, 1), "blocks")
QUAD_FLAT = RowsSchedule(4, 2, (1, 2), "pixels")

ALONE = {
    "scattered": Case(
        s := conv(5, 29, (6, 7), 3, padding=1, batch=2),
        HALF,
        draw_pattern(s, (3, 11, 8), scattered=True),
        group_order=True,
        activation="silu",
        y_halo=halo((1, 1), (2, 0)),
    ),
    "some_empty_rows": Case(
        s := conv(4, 22, (5, 5), 1, groups=2), HALF, draw_pattern(s, (5,), left_out=3), group_order=True, bias=True
    ),
    "linear": Case(
        s := linear(7, 19, 21), RowsSchedule(4, 2, (1, 2), "pixels"), draw_pattern(s, (6,)), group_order=True
    ),
}


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite(ALONE)


@pytest.mark.parametrize("name", ALONE)
def test_channels_in_the_order_of_the_blocks_are_found_by_the_map(suite: Suite, name: str) -> None:
    kernel = suite.kernels[name]
    assert kernel.channel_map is not None
    assert len(set(kernel.channel_map.tolist())) == ALONE[name].shape.channels_out
    suite.check(name)


def test_a_second_kernel_reads_channels_where_the_first_left_them() -> None:
    """The buffer between them has the second one's padding as halo, padding channels, and starts as NaN."""
    around = halo((1, 1), (1, 1))
    one = conv(3, 29, (6, 7), 3, padding=1, batch=2)
    two = conv(29, 18, (6, 7), 3, padding=1, batch=2, stride=2)
    first = Case(
        one, HALF, draw_pattern(one, (3, 11), scattered=True), activation="sigmoid", group_order=True, y_halo=around
    )
    second = Case(two, QUAD, draw_pattern(two, (4, 3), scattered=True), activation="relu")
    numbers, later = draw_tensors(first, "first"), draw_tensors(second, "second")
    work = first.workload()
    kernel = make_kernel(work, HALF, numbers.weight, first.pattern, numbers.bias, group_order=True)
    assert work.y.channels > 29, "the case needs padding channels"
    next_work = replace(second.workload(), x=work.y)
    following = make_kernel(next_work, QUAD, later.weight, second.pattern, later.bias, input_map=kernel.channel_map)
    library = Library({"one": kernel.script("one"), "two": following.script("two")}, parse_target("cpu", 2))
    between, y = poisoned(work.y.numel), poisoned(next_work.y.numel)
    BoundKernel(library["one"], kernel, place(numbers.x, work.x, one.padding), between, None, None).run()
    BoundKernel(library["two"], following, between, y, None, None).run()
    wanted = replace(later, x=numbers.reference(first)).reference(second)
    assert largest_error(view(y, next_work.y), wanted) <= TOLERANCE


def _bind(name: str, case: Case) -> tuple[LayerKernel, Library]:
    kernel = make_kernel(case.workload(), case.schedule, draw_tensors(case, name).weight, case.pattern, None)
    return kernel, Library({name: kernel.script(name)}, parse_target("cpu", 1))


def test_a_bound_kernel_takes_another_input_and_residual_at_the_call() -> None:
    case = Case(s := conv(3, 5, (4, 4), 1), QUAD_FLAT, draw_pattern(s), threads=1, bias=False, residual=True)
    kernel, library = _bind("with_others", case)
    tensors = draw_tensors(case, "with_others")
    assert tensors.residual is not None
    work = kernel.work
    assert work.residual is not None
    x, added, y = place(tensors.x, work.x), place(tensors.residual, work.residual), poisoned(work.y.numel)
    wanted = tensors.reference(case)
    BoundKernel(library["with_others"], kernel, None, y, None, None).run_with(x, added)
    assert largest_error(view(y, work.y), wanted) <= TOLERANCE
    y.fill_(torch.nan)
    bound = BoundKernel(library["with_others"], kernel, torch.zeros_like(x), y, added, None)
    bound.run_with(x, None)
    assert largest_error(view(y, work.y), wanted) <= TOLERANCE
    y.fill_(torch.nan)
    bound.run()
    assert torch.equal(view(y, work.y), tensors.residual)


@pytest.mark.parametrize("height", [1, 4, 64])
def test_the_output_has_a_channel_for_every_lane(height: int) -> None:
    shape = conv(3, 29, (4, 4), 1)
    pattern = draw_pattern(shape, (3, 11), left_out=2)
    assert packed_lanes(pattern, height) % height == 0
    assert packed_lanes(pattern, height) >= 29


def test_a_scratch_over_32_bits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 channels of 5 cells in 6 lines, for two threads in whole cache lines, are more than the weight's 360 cells."""
    monkeypatch.setattr("fxprune.codegen.kernel._LARGEST_INDEX", 500)
    shape, schedule = conv(20, 2, (4, 4), 3, padding=1), PixelsSchedule(8, 2, 1, "pixels")
    work = Case(shape, schedule, full_pattern(shape)).workload()
    with pytest.raises(CodegenError, match=r"The scratch of ConvShape.* has 13\d\d cells; kernels index with 32 bits"):
        make_kernel(work, schedule, np.ones((2, shape.columns), dtype=np.float32), full_pattern(shape), None)


def test_a_residual_keeps_the_channels_in_order() -> None:
    """Its channels are in order, and the kernel reads it where it writes."""
    case = Case(s := conv(3, 8, (4, 4), 1), HALF, draw_pattern(s, (3,)), residual=True, group_order=True)
    with pytest.raises(CodegenError, match="adds a residual"):
        Suite({"residual": case})


@pytest.mark.parametrize("what", ["input", "output", "weight"])
def test_buffers_over_32_bits_are_refused(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = conv(2, 8, (4, 4), 1)
    if what == "weight":
        monkeypatch.setattr("fxprune.codegen.kernel._LARGEST_INDEX", 100)
        shape = conv(20, 8, (1, 1), 1)
    work = Case(shape, HALF, full_pattern(shape)).workload()
    huge = Layout("nhwc", 1, 2**16, (1, 2**8, 2**8))
    work = replace(work, x=huge) if what == "input" else replace(work, y=huge) if what == "output" else work
    weight = np.ones((8, shape.columns), dtype=np.float32)
    with pytest.raises(CodegenError, match=rf"The {what} of ConvShape.* cells; kernels index with 32 bits"):
        make_kernel(work, HALF, weight, full_pattern(shape), None)
