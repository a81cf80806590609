"""The depthwise kernel against torch: strides, halos, tails of channels, epilogues."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fxprune.codegen.build import Library
from fxprune.codegen.cpu.depthwise import DepthwiseSchedule
from fxprune.codegen.kernel import BoundKernel, LayerKernel, make_kernel
from fxprune.codegen.target import parse_target
from tests.codegen.suite import (
    TOLERANCE,
    Case,
    Tensors,
    conv,
    draw_tensors,
    full_pattern,
    guards_are_intact,
    halo,
    largest_error,
    make,
    place,
    poisoned,
    run_kernel,
    view,
)

WIDE = DepthwiseSchedule(16, 2, 6)


def _case(
    channels: int, image: tuple[int, int], size: int, schedule: DepthwiseSchedule = WIDE, **options: object
) -> Case:
    names = ("batch", "stride", "padding", "dilation")
    geometry = {name: options.pop(name) for name in names if name in options}
    shape = conv(channels, channels, image, size, groups=channels, **geometry)  # type: ignore[arg-type]
    return Case(shape, schedule, full_pattern(shape), **options)  # type: ignore[arg-type]


CASES = {
    "mobilenet": _case(96, (14, 14), 3, padding=1, activation="hardtanh", activation_args=(0.0, 6.0)),
    "stride": _case(48, (15, 12), 3, padding=1, stride=2),
    "large": _case(32, (9, 9), 5, padding=2, activation="hardswish"),
    "seven": _case(32, (8, 8), 7, padding=3, activation="silu"),
    "dilated": _case(16, (11, 10), 3, padding=2, dilation=2),
    "residual": _case(64, (6, 7), 3, padding=1, residual=True, activation="relu"),
    "batch": _case(32, (5, 5), 3, DepthwiseSchedule(16, 1, 8), batch=3, padding=1),
    "narrow": _case(24, (6, 6), 3, padding=1),
    "odd": _case(7, (5, 4), 3, padding=1),
    "one_pixel": _case(32, (1, 1), 3, padding=1),
    "no_bias": _case(32, (6, 6), 3, DepthwiseSchedule(8, 4, 3), padding=1, bias=False),
    "y_halo": _case(32, (6, 6), 3, padding=1, y_halo=halo((1, 2), (1, 1))),
}


@pytest.fixture(scope="module")
def kernels() -> dict[str, tuple[Case, Tensors, LayerKernel]]:
    return {
        name: (case, draw_tensors(case, name), make(case, draw_tensors(case, name))) for name, case in CASES.items()
    }


@pytest.fixture(scope="module")
def library(kernels: dict[str, tuple[Case, Tensors, LayerKernel]]) -> Library:
    return Library({name: kernel.script(name) for name, (_, _, kernel) in kernels.items()}, parse_target("cpu", 2))


@pytest.mark.parametrize("name", CASES)
def test_depthwise_equals_torch(
    name: str, kernels: dict[str, tuple[Case, Tensors, LayerKernel]], library: Library
) -> None:
    case, tensors, kernel = kernels[name]
    found = view(run_kernel(library, name, kernel, tensors), kernel.work.y)
    assert largest_error(found, tensors.reference(case)) <= TOLERANCE


def test_channels_of_padding_fill_whole_vectors() -> None:
    case = CASES["narrow"]
    tensors, work = draw_tensors(case, "narrow"), case.workload()
    wide = replace(work, x=replace(work.x, channels=32), y=replace(work.y, channels=48))
    kernel = make_kernel(wide, WIDE, tensors.weight, case.pattern, tensors.bias)
    assert kernel.arrays[0].size == 9 * 32, "24 channels and 8 of padding"
    library = Library({"wide": kernel.script("wide")}, parse_target("cpu", 2))
    padded = torch.cat([tensors.x, torch.full((1, 8, 1, 6, 6), torch.nan)], 1)
    y = poisoned(wide.y.numel)
    BoundKernel(library["wide"], kernel, place(padded, wide.x, case.shape.padding), y, None, None).run()
    assert guards_are_intact(y)
    assert largest_error(view(y, wide.y)[:, :24], tensors.reference(case)) <= TOLERANCE
