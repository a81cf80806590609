"""Pooling between kernels in whole compiled models: which nodes the kernel takes, and that the numbers stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxprune import CompiledModule
from fxprune.codegen.cpu import pool
from tests.compiling import check, draw_masks, force_kernels, row_groups

Between = Callable[[torch.Tensor], torch.Tensor]


class _Net(nn.Module):
    """Two sparse layers with something between them, whose result is added again; a mean at the end."""

    def __init__(self, between: Between, end: Between) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.between, self.end, self.head = between, end, nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.between(torch.relu(self.first(x)))
        y: torch.Tensor = self.head(self.end(torch.relu(self.second(x) + x)).flatten(1))
        return y


def _whole(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3))


def _compile(monkeypatch: pytest.MonkeyPatch, between: Between, end: Between = _whole) -> tuple[CompiledModule, int]:
    """Compile and compare; returns the model and how many pooling kernels were written."""
    written: list[str] = []

    def build(name: str, work: pool.PoolWorkload) -> str:
        written.append(name)
        return pool.build_pool_kernel(name, work)

    monkeypatch.setattr("fxprune.lowering.unary.build_pool_kernel", build)
    force_kernels(monkeypatch, "rows")
    model = _Net(between, end).eval()
    return check(model, draw_masks(model, row_groups(32)), torch.randn(2, 8, 12, 10)), len(written)


@pytest.mark.parametrize(
    "between",
    [
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.max_pool2d(x, 3, 2, 1),
        lambda x: F.max_pool2d(x, (3, 2), (2, 1), ceil_mode=True),
        lambda x: F.max_pool2d(F.max_pool2d(x, 2), 3, 1, 1),
        lambda x: F.avg_pool2d(x, (3, 2), (2, 1)),
    ],
    ids=["halves", "padded", "uneven", "twice", "average"],
)
def test_a_pool_of_windows_is_a_kernel(monkeypatch: pytest.MonkeyPatch, between: Between) -> None:
    _, count = _compile(monkeypatch, between)
    assert count >= 2


@pytest.mark.parametrize(
    "end",
    [lambda x: F.adaptive_avg_pool2d(x, 1), lambda x: x.mean((-1, -2), keepdim=True), _whole],
    ids=["adaptive", "kept", "dropped"],
)
def test_mean_of_the_image_is_a_kernel(monkeypatch: pytest.MonkeyPatch, end: Between) -> None:
    _, count = _compile(monkeypatch, lambda x: F.max_pool2d(x, 2), end)
    assert count == 2


def test_what_the_kernel_does_not_know_stays_on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    _, count = _compile(monkeypatch, lambda x: F.max_pool2d(x, 3, 1, 1, dilation=1).sigmoid(), lambda x: x.amax((2, 3)))
    assert count == 1
    _, count = _compile(
        monkeypatch,
        lambda x: F.max_pool2d(x, 2, dilation=2),
        lambda x: F.avg_pool2d(x, 3, 1, 1).mean((1, 2))[:, :1].expand(-1, 64),
    )
    assert count == 0


def test_planes_are_pooled_as_planes(monkeypatch: pytest.MonkeyPatch) -> None:
    force_kernels(monkeypatch, "pixels")
    monkeypatch.setattr("fxprune.lowering.unary.build_pool_kernel", lambda *_: pytest.fail("planes channels-last"))
    model = _Net(lambda x: F.max_pool2d(x, 2), _whole).eval()
    compiled = check(model, draw_masks(model, row_groups(32)), torch.randn(1, 8, 12, 10))
    called = [str(node.target) for node in compiled.graph_module.graph.nodes if node.op == "call_function"]
    assert not any("pool" in name or "mean" in name for name in called)
