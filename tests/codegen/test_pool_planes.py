"""The pooling kernel on planes against torch: windows, padding, whole planes, bands, odd sizes, NaN."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from fxprune.codegen.build import Library
from fxprune.codegen.cpu.bands import cut_layout
from fxprune.codegen.cpu.pool import PoolWorkload
from fxprune.codegen.cpu.pool_planes import build_plane_pool_kernel
from fxprune.codegen.kernel import BoundUnary
from fxprune.codegen.target import parse_target
from fxprune.codegen.workload import Layout
from tests.codegen.pooling import check_equals_torch, check_nan_stays
from tests.codegen.suite import from_bands, guards_are_intact, place, poisoned, view

Pair = tuple[int, int]


def _work(
    kind: Literal["max", "mean"],
    shape: tuple[int, int, int, int],
    window: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    *,
    ceil: bool = False,
    spread: bool = True,
    bands: Pair = (1, 1),
) -> PoolWorkload:
    """Return the pooling of [N, C, H, W], with bands of input and output; a mean's output is as large as a maximum."""
    like = F.max_pool2d(torch.empty(1, 1, *shape[2:]), window, stride, padding, ceil_mode=ceil)
    x = Layout("nchw", shape[0], shape[1], (1, *shape[2:]), spread=spread)
    y = Layout("nchw", shape[0], shape[1], (1, like.shape[2], like.shape[3]), spread=spread)
    x, y = cut_layout(x, bands[0]), cut_layout(y, bands[1])
    return PoolWorkload(kind, shape[1], x, y, window, stride, padding, 16, 2, bands[1])


CASES = {
    "resnet": _work("max", (1, 6, 14, 14), (3, 3), (2, 2), (1, 1)),
    "resnet_touching": _work("max", (2, 6, 14, 14), (3, 3), (2, 2), (1, 1), spread=False),
    "vgg": _work("max", (2, 3, 8, 36), (2, 2), (2, 2)),
    "ceil": _work("max", (1, 5, 7, 8), (3, 3), (2, 2), ceil=True),
    "same_size": _work("max", (3, 3, 5, 3), (3, 3), (1, 1), (1, 1)),
    "uneven": _work("max", (1, 43, 9, 7), (3, 2), (2, 1), (1, 0)),
    "one_pixel": _work("max", (1, 4, 1, 1), (3, 3), (1, 1), (1, 1)),
    "wide_window": _work("max", (1, 2, 19, 19), (5, 5), (3, 3), (2, 2)),
    "windows": _work("mean", (2, 3, 9, 8), (3, 2), (2, 2)),
    "bands": _work("max", (1, 6, 12, 14), (3, 3), (2, 2), (1, 1), bands=(2, 2)),
    "bands_in": _work("max", (2, 6, 12, 14), (3, 3), (2, 2), (1, 1), bands=(3, 1)),
    "bands_out": _work("max", (2, 5, 12, 14), (3, 3), (1, 1), (1, 1), bands=(1, 2)),
    "bands_of_windows": _work("mean", (3, 5, 12, 9), (2, 2), (2, 2), bands=(2, 3)),
    "mean": _work("mean", (1, 64, 7, 7), (7, 7)),
    "mean_touching": _work("mean", (1, 64, 7, 7), (7, 7), spread=False),
    "mean_batch": _work("mean", (3, 43, 5, 2), (5, 2)),
    "mean_vectors": _work("mean", (1, 3, 8, 8), (8, 8)),
    "mean_many": _work("mean", (1, 3, 19, 17), (19, 17)),
    "mean_one": _work("mean", (2, 13, 1, 1), (1, 1)),
}
CEIL = {"ceil"}


@pytest.fixture(scope="module")
def library() -> Library:
    scripts = {name: build_plane_pool_kernel(name, work) for name, work in CASES.items()}
    return Library(scripts, parse_target("cpu", 2))


def _run(library: Library, name: str, x: torch.Tensor) -> torch.Tensor:
    """Run a case; returns [N, C, H, W]."""
    work, y = CASES[name], poisoned(CASES[name].y.numel)
    BoundUnary(library[name], place(x[:, :, None], work.x), y).run()
    assert guards_are_intact(y), "written outside the output"
    return from_bands(view(y, work.y), len(x))[:, :, 0]


@pytest.mark.parametrize("name", CASES)
def test_pool_equals_torch(library: Library, name: str) -> None:
    check_equals_torch(lambda x: _run(library, name, x), CASES[name], ceil=name in CEIL)


@pytest.mark.parametrize("name", ["resnet", "uneven", "bands", "mean"])
def test_a_number_that_is_none_stays_none(library: Library, name: str) -> None:
    check_nan_stays(lambda x: _run(library, name, x), CASES[name])
