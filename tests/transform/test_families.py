"""Masks of follow-up works go through `compile` exact, and the report names what was recognised and what it bought."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from tests.compiling import check
from tests.structure.drawing import CHANNELS, FAMILIES, ROWS, draw


@pytest.mark.parametrize("name", FAMILIES)
def test_exact_and_named(name: str) -> None:
    net = nn.Sequential(nn.Conv2d(CHANNELS, ROWS, 3, padding=1), nn.ReLU(), nn.Conv2d(ROWS, 8, 1)).eval()
    mask = torch.from_numpy(draw(name)).reshape(ROWS, CHANNELS, 3, 3)
    compiled = check(net, {"0.weight": mask}, torch.randn(1, CHANNELS, 14, 14))
    first, last = compiled.report.layers
    assert first.reason.startswith(FAMILIES[name])
    assert re.search(r"; .*\d", first.reason), "no figure says what it bought"
    assert not last.reason.startswith(("row groups", "unstructured", "channels", "dense;"))


@pytest.mark.parametrize("name", ["kernel-wise blocks", "shuffled blocks", "pure channels"])
def test_structure_is_executed_without_its_zeros(name: str) -> None:
    net = nn.Sequential(nn.Conv2d(CHANNELS, ROWS, 3, padding=1)).eval()
    mask = torch.from_numpy(draw(name)).reshape(ROWS, CHANNELS, 3, 3)
    compiled = check(net, {"0.weight": mask}, torch.randn(1, CHANNELS, 28, 28))
    (layer,) = compiled.report.layers
    assert layer.macs_run < 1.1 * layer.macs_kept


def test_transposed_convolution_is_not_looked_at() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(4, 8, 2)).eval()
    compiled = check(net, {"0.weight": torch.rand(4, 8, 2, 2) < 0.5}, torch.randn(1, 4, 5, 5))
    assert compiled.report.layers[0].reason.startswith("not looked at: a transposed convolution; ")
