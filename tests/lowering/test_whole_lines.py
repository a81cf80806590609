"""Tiles that go on behind the image: chosen on planes of our own, run on planes that torch made as well."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune.annotation import RowGroupPattern
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.schedules import Candidate
from fxprune.codegen.target import CpuTarget
from fxprune.codegen.workload import Workload
from tests.compiling import cells, check, draw_masks, force_kernels


class _Net(nn.Module):
    """1x1 layers at 7x7, two in a row and one of stride 2, between operators that torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(24, 40, 1), nn.Conv2d(40, 24, 1)
        self.down, self.last = nn.Conv2d(24, 32, 1, stride=2), nn.Conv2d(32, 10, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = torch.sin(x)
        y = torch.relu(self.second(torch.relu(self.first(x))) + x)
        down = self.down(torch.cat([y, torch.sin(y)], 3))
        return y, self.last(down), down.flatten(1), down.mean((2, 3))


def _widest(work: Workload, _pattern: RowGroupPattern, target: CpuTarget) -> list[Candidate]:
    vectors = work.y.plane // target.lanes
    return [Candidate(PixelsSchedule(target.lanes, 1, vectors, "blocks"), 1.0)]


@pytest.mark.parametrize("batch", [1, 3])
def test_tiles_fit_planes_of_torch(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    force_kernels(monkeypatch, "pixels")
    monkeypatch.setattr("fxprune.lowering.select.pixels_candidates", _widest)
    model = _Net().eval()
    check(model, draw_masks(model, cells(0.5)), torch.randn(batch, 24, 7, 7))
