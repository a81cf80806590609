"""Micro-batches: how many images one takes, that the numbers stay, and what the report and the file say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune import microbatch
from fxprune.lowering.parts import join_outputs, split_inputs
from fxprune.microbatch import split_batch
from tests.compiling import check, draw_masks, force_kernels, row_groups
from tests.networks import build


def _net(channels: int) -> nn.Module:
    convs = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)]
    return nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 8))


def test_large_activations_are_computed_image_by_image() -> None:
    gm = build(_net(8).eval().double(), torch.randn(4, 8, 200, 200, dtype=torch.float64))
    found = split_batch(gm)
    assert (found.images, found.count) == (1, 4)
    assert found.graph_module is not gm


def test_small_activations_stay_together() -> None:
    gm = build(_net(8).eval().double(), torch.randn(16, 8, 6, 6, dtype=torch.float64))
    assert split_batch(gm).images is None


def test_a_micro_batch_takes_as_many_images_as_fit() -> None:
    """An image's largest layer reads and writes 5 MB with float64, so two of them outgrow 8 MB and one does not."""
    gm = build(_net(8).eval().double(), torch.randn(6, 8, 140, 140, dtype=torch.float64))
    assert split_batch(gm).images == 3


@pytest.mark.parametrize("images", [1, 3])
def test_the_numbers_stay(images: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    force_kernels(monkeypatch, "rows")
    monkeypatch.setattr(microbatch, "_predict", lambda *_: images)
    net, x = _net(32).eval(), torch.randn(6, 32, 7, 7)
    compiled = check(net, draw_masks(net, row_groups(8, 0.5)), x)
    first = compiled.report.layers[0]
    assert first.output_shape == (6, 32, 7, 7)
    assert first.macs_dense == 6 * 49 * 32 * 32 * 9
    assert f"{6 // images} micro-batches of {images}" in first.reason
    compiled.save(tmp_path / "model.fxp")
    loaded = fxprune.load(tmp_path / "model.fxp")
    assert torch.equal(loaded(x), compiled(x))


def test_inputs_that_are_no_tensors_are_the_same_in_every_part() -> None:
    x = torch.arange(6.0).view(3, 2)
    parts = split_inputs([x, 7], 1)
    assert [part[1] for part in parts] == [7, 7, 7]
    assert torch.equal(join_outputs([[part[0]] for part in parts])[0], x)  # type: ignore[arg-type]
