"""Kernels of both orders of activations in one model: each buffer is copied once, all of them are one chain."""

from __future__ import annotations

from math import prod

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxprune.codegen.workload import ConvShape
from fxprune.lowering.chain import ChainModule
from tests.compiling import IsRows, cells, check, draw_masks, force_families


class _Net(nn.Module):
    """Layers of 3x3 and of 1x1 that read each other as input and residual; a pool and a head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.one, self.two, self.four = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.three, self.head = nn.Conv2d(channels, channels, 3, padding=1), nn.Linear(channels, 10)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pooled = F.max_pool2d(torch.relu(self.stem(x)), 3, 2, 1)
        one = torch.relu(self.one(pooled))
        two = self.two(pooled) + one
        three = torch.relu(self.three(two) + two)
        four = self.four(three) + pooled
        return self.head(four.mean((2, 3))), three.sin(), pooled


def _wide(shape: ConvShape) -> bool:
    return prod(shape.kernel) > 1


@pytest.mark.parametrize(
    ("is_rows", "batch", "channels", "turns"),
    [
        (_wide, 3, 43, 3),  # of the pool, of two and of three
        (lambda shape: not _wide(shape), 1, 64, 3),
        (lambda shape: shape.channels_in == 3, 2, 20, 1),  # of the pool
    ],
    ids=["1x1 planes", "3x3 planes", "stem"],
)
def test_every_buffer_is_copied_once(
    monkeypatch: pytest.MonkeyPatch, is_rows: IsRows, batch: int, channels: int, turns: int
) -> None:
    force_families(monkeypatch, is_rows)
    net = _Net(channels).eval()
    compiled = check(net, draw_masks(net, cells(0.3)), torch.randn(batch, 3, 13, 10))
    modules = list(compiled.graph_module.modules())
    (chain,) = (module for module in modules if isinstance(module, ChainModule))
    assert sum(name.startswith("turn_") for name in chain.names) == turns
    assert sum(name.startswith("unary_") for name in chain.names) == 2
    layers = {layer.kernel.startswith("pixels") for layer in compiled.report.layers}
    assert layers == {True, False}


def test_a_layer_of_one_axis_reads_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    force_families(monkeypatch, _wide)
    net = nn.Sequential(nn.Conv1d(8, 17, 3, padding=1), nn.Conv1d(17, 40, 1), nn.Conv1d(40, 6, 3, padding=1)).eval()
    compiled = check(net, draw_masks(net, cells(0.3)), torch.randn(2, 8, 21))
    (chain,) = (module for module in compiled.graph_module.modules() if isinstance(module, ChainModule))
    assert [name.split("_")[0] for name in chain.names] == ["kernel", "turn", "kernel", "turn", "kernel"]
