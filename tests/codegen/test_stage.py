"""The copy into a channels-last buffer with a halo, and what comes in another form, against torch's own copy."""

from __future__ import annotations

import pytest
import torch

from fxprune.codegen.build import Library
from fxprune.codegen.cpu.stage import build_stage_kernel
from fxprune.codegen.kernel import BoundUnary
from fxprune.codegen.target import parse_target
from fxprune.codegen.workload import Layout
from fxprune.lowering.modules import Port, StageModule
from tests.codegen.suite import guards_are_intact, halo, poisoned, view

LAYOUTS = {
    "image": Layout("nhwc", 1, 3, (1, 9, 14), halo((3, 3), (3, 2))),
    "batch": Layout("nhwc", 3, 5, (1, 4, 7), halo((0, 1), (2, 0))),
    "many_channels": Layout("nhwc", 2, 33, (1, 3, 5), halo((1, 1), (1, 1))),
    "axes_3": Layout("nhwc", 2, 4, (3, 4, 5), halo((1, 0), (1, 1), (0, 2))),
    "one_cell": Layout("nhwc", 1, 1, (1, 1, 1), halo((1, 1), (1, 1))),
}


@pytest.fixture(scope="module")
def library() -> Library:
    return Library({name: build_stage_kernel(name, y, 2) for name, y in LAYOUTS.items()}, parse_target("cpu", 2))


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_inside_is_copied_and_nothing_else_is_written(library: Library, name: str) -> None:
    layout = LAYOUTS[name]
    x = torch.randn(layout.batch, layout.channels, *layout.spatial)
    y = poisoned(layout.numel)
    BoundUnary(library[name], x.flatten(), y).run()
    inside = torch.zeros(layout.numel, dtype=torch.bool)
    view(inside, layout).fill_(True)
    assert torch.equal(view(y, layout), x)
    assert bool(y[~inside].isnan().all())
    assert guards_are_intact(y)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(3, 5, 4, 7),
        lambda: torch.randn(3, 5, 4, 7).contiguous(memory_format=torch.channels_last),
        lambda: torch.randn(3, 5, 7, 4).transpose(2, 3),
        lambda: torch.randn(1, 5, 4, 7).expand(3, 5, 4, 7),
        lambda: torch.randn(3 * 5 * 4 * 7 + 1)[1:].view(3, 5, 4, 7),
    ],
    ids=["contiguous", "channels_last", "transposed", "expanded", "unaligned"],
)
def test_any_tensor_is_copied(library: Library, make: object) -> None:
    layout = LAYOUTS["batch"]
    stage, x = StageModule(Port(layout, "conv", 2), library, "batch"), make()  # type: ignore[operator]
    assert stage(x) is x
    assert torch.equal(view(stage.buffer, layout)[:, :, 0], x)
    inside = torch.zeros(layout.numel, dtype=torch.bool)
    view(inside, layout).fill_(True)
    assert bool((stage.buffer[~inside] == 0).all())
