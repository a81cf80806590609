"""A graph for fewer images: only where each image is computed on its own, and then the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from fxprune.graph.images import batch_of, for_images
from tests.networks import Function, build, image

BATCH = 4

Net = Callable[[Any, torch.Tensor], object]


def _parts() -> dict[str, nn.Module]:
    return {
        "conv": nn.Conv2d(6, 8, 3, padding=1),
        "norm": nn.BatchNorm2d(8),
        "up": nn.ConvTranspose2d(8, 6, 2, stride=2),
        "head": nn.Linear(8, 5),
        "gate": nn.Linear(8, 8),
    }


def _residual(m: Any, x: torch.Tensor) -> object:
    y = torch.relu(m.norm(m.conv(x)))
    return F.max_pool2d(torch.cat([y + y * 2, y], 1), 2)


def _classifier(m: Any, x: torch.Tensor) -> object:
    return torch.softmax(m.head(torch.flatten(F.adaptive_avg_pool2d(m.conv(x), 1), 1)), -1)


def _gated(m: Any, x: torch.Tensor) -> object:
    y = m.conv(x)
    scale = torch.sigmoid(m.gate(y.mean((2, 3)))).view(BATCH, 8, 1, 1)
    return y * scale, m.up(y)


def _shuffled(m: Any, x: torch.Tensor) -> object:
    one, two = m.conv(x).chunk(2, 1)
    return torch.cat([two, one], 1).view(BATCH, 4, 2, -1).reshape(BATCH, -1)


PER_IMAGE: dict[str, Net] = {
    "residual": _residual,
    "classifier": _classifier,
    "gated": _gated,
    "shuffled": _shuffled,
    "selected": lambda m, x: torch.index_select(m.conv(x), 1, torch.tensor([3, 1])),
}

MIXED: dict[str, Net] = {
    "mean_over_images": lambda m, x: m.conv(x) - m.conv(x).mean(0, keepdim=True),
    "mean_of_all": lambda m, x: m.conv(x) * m.conv(x).mean(),
    "softmax_over_images": lambda m, x: torch.softmax(m.conv(x), 0),
    "images_merged": lambda m, x: m.conv(x).view(2, 2 * 8, 5, 5),
    "images_turned": lambda m, x: m.conv(x).flip(0),
    "images_rolled": lambda m, x: m.conv(x) + torch.roll(m.conv(x), 1, 0),
    "images_as_channels": lambda m, x: m.conv(x).mean((2, 3)).view(1, BATCH * 8),
    "images_permuted": lambda m, x: m.conv(x).mean((2, 3))[:, :BATCH].t() + m.conv(x).mean((2, 3))[:, :BATCH],
    "gram": lambda m, x: (lambda v: v @ v.t())(m.conv(x).flatten(1)),
    "constant_for_each_image": lambda m, x: m.conv(x) * torch.arange(4.0, dtype=x.dtype).view(4, 1, 1, 1),
    "images_broadcast_as_channels": lambda m, x: m.conv(x).mean((2, 3))[:, :1].flatten(0) + m.head.weight[:BATCH, :1],
    "first_image": lambda m, x: m.conv(x)[:1] + m.conv(x),
    "of_no_input": lambda m, x: (m.conv(x), m.head.weight * 2),
}


def _run(gm: fx.GraphModule, x: torch.Tensor) -> list[torch.Tensor]:
    found = fx.Interpreter(gm).run(x, enable_io_processing=False)
    return list(found) if isinstance(found, (tuple, list)) else [found]


@pytest.mark.parametrize("name", PER_IMAGE)
@pytest.mark.parametrize("images", [1, 2])
def test_images_in_turns_give_the_same_numbers(name: str, images: int) -> None:
    x = torch.randn(BATCH, 6, 6, 6, dtype=torch.float64)
    gm = build(Function(PER_IMAGE[name], **_parts()).double().eval(), x)
    assert batch_of(gm) == BATCH
    small = for_images(gm, images)
    assert small is not None
    whole = _run(gm, x)
    parts = [_run(small, x[start : start + images]) for start in range(0, BATCH, images)]
    for number, wanted in enumerate(whole):
        found = torch.cat([part[number] for part in parts])
        assert (found - wanted).abs().max() <= 1e-9 * wanted.abs().max()


@pytest.mark.parametrize("name", MIXED)
def test_images_that_meet_stay_together(name: str) -> None:
    x = torch.randn(BATCH, 6, 5, 5, dtype=torch.float64)
    gm = build(Function(MIXED[name], **_parts()).double().eval(), x)
    assert batch_of(gm) is None
    assert for_images(gm, 1) is None


def test_one_image_is_no_batch() -> None:
    assert batch_of(build(nn.Conv2d(3, 4, 3).double().eval(), image(1, 3, 5, 5))) is None


def test_an_image_without_a_batch_axis_is_no_batch() -> None:
    assert batch_of(build(nn.Conv2d(3, 4, 3).double().eval(), image(3, 5, 5))) is None


def test_inputs_of_different_batches_are_no_batch() -> None:
    gm = build(Function(lambda _m, x, y: (x * 2, y * 2)).eval(), image(2, 3), image(4, 3))
    assert batch_of(gm) is None
