"""The pooling kernel against torch: windows, padding, halos, channel counts, NaN."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fxprune.codegen.build import Library
from fxprune.codegen.cpu.pool import PoolWorkload, build_pool_kernel
from fxprune.codegen.kernel import BoundUnary
from fxprune.codegen.target import parse_target
from fxprune.codegen.workload import NO_HALO, Layout
from tests.codegen.pooling import check_equals_torch, check_nan_stays, draw, expect
from tests.codegen.suite import check_halo, guards_are_intact, halo, place, poisoned, view


def _max(
    batch: int,
    channels: int,
    image: tuple[int, int],
    window: int,
    stride: int,
    padding: int,
    *,
    ceil: bool = False,
    spare: int = 0,
) -> PoolWorkload:
    """Return a max pool between buffers with halos and `spare` channels of padding."""
    like = F.max_pool2d(torch.empty(1, 1, *image), window, stride, padding, ceil_mode=ceil)
    x = Layout("nhwc", batch, channels + spare, (1, *image), halo((1, 2), (0, 1)))
    y = Layout("nhwc", batch, channels + spare, (1, like.shape[2], like.shape[3]), halo((1, 1), (2, 1)))
    return PoolWorkload("max", channels, x, y, (window, window), (stride, stride), (padding, padding), 16, 2)


def _mean(batch: int, channels: int, image: tuple[int, int]) -> PoolWorkload:
    x = Layout("nhwc", batch, channels, (1, *image), NO_HALO)
    y = Layout("nhwc", batch, channels, (1, 1, 1), NO_HALO)
    return PoolWorkload("mean", channels, x, y, image, (1, 1), (0, 0), 16, 2)


CASES = {
    "resnet": _max(1, 64, (14, 14), 3, 2, 1),
    "vgg": _max(2, 128, (8, 6), 2, 2, 0, spare=16),
    "ceil": _max(1, 48, (7, 8), 3, 2, 0, ceil=True),
    "same_size": _max(3, 16, (5, 3), 3, 1, 1),
    "odd_channels": _max(1, 7, (6, 6), 2, 2, 1),
    "whole_vectors": _max(2, 43, (6, 6), 3, 2, 1, spare=5),
    "one_pixel": _max(1, 24, (1, 1), 3, 1, 1),
    "wide_window": _max(1, 32, (9, 9), 5, 3, 2),
    "mean": _mean(1, 2048, (7, 7)),
    "mean_batch": _mean(3, 40, (5, 2)),
    "mean_odd": _mean(1, 13, (1, 1)),
}
CEIL = {"ceil"}


@pytest.fixture(scope="module")
def library() -> Library:
    scripts = {name: build_pool_kernel(name, work) for name, work in CASES.items()}
    return Library(scripts, parse_target("cpu", 2))


def buffers(name: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the flat input of a case, NaN in its halo and channels of padding, and a poisoned output."""
    work = CASES[name]
    buffer = place(torch.zeros(x.shape[0], work.x.channels, 1, *x.shape[2:]).fill_(torch.nan), work.x)
    view(buffer, work.x)[:, : work.channels] = x[:, :, None]
    return buffer, poisoned(work.y.numel)


def inside(name: str, y: torch.Tensor) -> torch.Tensor:
    """Check the halo of an output; return its inside without channels of padding, [N, C, H, W]."""
    work = CASES[name]
    check_halo(y, work.y)
    found = view(y, work.y)
    return found[:, : work.channels, 0]


def _run(library: Library, name: str, x: torch.Tensor) -> torch.Tensor:
    """Run a case; returns [N, C, H, W]."""
    buffer, y = buffers(name, x)
    BoundUnary(library[name], buffer, y).run()
    assert guards_are_intact(y), "written outside the output"
    return inside(name, y)


@pytest.mark.parametrize("name", CASES)
def test_pool_equals_torch(library: Library, name: str) -> None:
    check_equals_torch(lambda x: _run(library, name, x), CASES[name], ceil=name in CEIL)


@pytest.mark.parametrize("name", ["resnet", "odd_channels", "mean"])
def test_a_number_that_is_none_stays_none(library: Library, name: str) -> None:
    check_nan_stays(lambda x: _run(library, name, x), CASES[name])


def test_infinities_stay(library: Library) -> None:
    x = draw(CASES["vgg"])
    x[0, 5, :2, :2], x[1, 6, 0, 0] = -torch.inf, torch.inf
    assert torch.equal(_run(library, "vgg", x), expect(CASES["vgg"], x))
