"""Linear layers that read the images of a kernel as rows: no copy between them, and the numbers stay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxprune.codegen.workload import Layout
from fxprune.lowering.flattened import cell_positions, rows_layout
from tests.compiling import Mask, cells, check, draw_masks, force_kernels, row_groups

Between = Callable[[torch.Tensor], torch.Tensor]


class _Net(nn.Module):
    """A convolution, the linear layer that reads its images as rows, and one more."""

    def __init__(self, conv: nn.Module, between: Between, cells: int) -> None:
        super().__init__()
        self.conv, self.between, self.head, self.end = conv, between, nn.Linear(cells, 40), nn.Linear(40, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(x))
        y: torch.Tensor = self.end(torch.relu(self.head(torch.flatten(self.between(x), 1))))
        return y


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


def _pool(x: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(x, 2)


@pytest.mark.parametrize("family", ["rows", "pixels"])
@pytest.mark.parametrize(("batch", "mask"), [(1, row_groups(8)), (3, cells(0.3))], ids=["groups of 8", "cells"])
@pytest.mark.parametrize(
    ("conv", "between", "shape", "count"),
    [
        pytest.param(nn.Conv2d(5, 20, 3, padding=1), _same, (5, 6, 7), 840, id="image"),
        pytest.param(nn.Conv2d(5, 130, 3, padding=1), _pool, (5, 6, 5), 780, id="pool"),
        pytest.param(nn.Conv1d(5, 20, 3), _same, (5, 9), 140, id="line"),
        pytest.param(nn.Conv3d(3, 20, 2), _same, (3, 3, 4, 3), 240, id="volume"),
    ],
)
def test_the_numbers_stay(
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    batch: int,
    mask: Mask,
    conv: nn.Module,
    between: Between,
    shape: tuple[int, ...],
    count: int,
) -> None:
    force_kernels(monkeypatch, family)
    model = _Net(conv, between, count).eval()
    check(model, draw_masks(model, mask), torch.randn(batch, *shape))


@pytest.mark.parametrize("between", [_same, _pool], ids=["layer", "pool"])
def test_nothing_runs_between_the_kernels(monkeypatch: pytest.MonkeyPatch, between: Between) -> None:
    force_kernels(monkeypatch, "rows")
    model = _Net(nn.Conv2d(5, 20, 3, padding=1), between, 240 if between is _pool else 960).eval()
    compiled = check(model, draw_masks(model, row_groups(8)), torch.randn(1, 5, 6, 8))
    graph = compiled._latest.program.graph_module.graph  # type: ignore[union-attr]
    assert [node.op for node in graph.nodes if node.op == "call_function"] == []


def test_an_image_that_others_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its buffer has the halo that the other layer needs, and torch sees it as an output."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.other, self.head = nn.Conv2d(5, 20, 1), nn.Conv2d(20, 16, 5, padding=2), nn.Linear(840, 40)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            x = torch.relu(self.conv(x))
            return x, self.other(x), self.head(x.reshape(x.shape[0], -1))

    force_kernels(monkeypatch, "rows")
    model = Net().eval()
    check(model, draw_masks(model, row_groups(8)), torch.randn(2, 5, 6, 7))


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(Layout("nhwc", 2, 5, (1, 3, 4)), id="channels-last"),
        pytest.param(Layout("nhwc", 2, 16, (1, 3, 4), ((0, 0), (1, 2), (3, 1))), id="halo and channels of padding"),
        pytest.param(Layout("nchw", 2, 5, (1, 3, 4)), id="planes"),
        pytest.param(Layout("nchw", 2, 5, (1, 3, 7), spread=True), id="planes on cache lines"),
    ],
)
def test_positions_are_those_of_the_cells(layout: Layout) -> None:
    x = torch.randn(2, 5, *layout.spatial[1:])
    buffer = torch.zeros(layout.numel)
    n, c, _, h, w = layout.strides
    buffer.as_strided(x.shape, (n, c, h, w), layout.origin).copy_(x)
    rows = rows_layout(layout)
    positions = cell_positions(layout, x[0].numel())
    found = buffer.numpy()[np.arange(2)[:, None] * rows.channels + positions]
    assert rows.numel == layout.numel
    assert np.array_equal(found, x.flatten(1).numpy())
