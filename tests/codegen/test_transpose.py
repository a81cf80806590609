"""The copy between channels-last and planes against torch's own copy: halos, padding channels, odd sizes."""

from __future__ import annotations

import pytest
import torch

from fxprune.codegen.build import Library
from fxprune.codegen.cpu.transpose import build_transpose_kernel
from fxprune.codegen.kernel import BoundUnary
from fxprune.codegen.target import parse_target
from fxprune.codegen.workload import NO_HALO, Halo, Layout, Triple
from tests.codegen.suite import check_halo, guards_are_intact, halo, place, poisoned, view


def _rows(batch: int, channels: int, image: Triple, around: Halo = NO_HALO) -> Layout:
    return Layout("nhwc", batch, channels, image, around)


ROWS = {
    "resnet": (64, _rows(1, 64, (1, 14, 14))),
    "around": (64, _rows(2, 80, (1, 7, 18), halo((1, 1), (1, 1)))),
    "odd": (43, _rows(3, 43, (1, 5, 7), halo((0, 1), (2, 0)))),
    "image": (3, _rows(1, 3, (1, 9, 11))),
    "spare": (20, _rows(2, 32, (1, 5, 5))),
    "one_pixel": (24, _rows(2, 24, (1, 1, 1), halo((1, 1), (1, 1)))),
    "one_channel": (1, _rows(2, 1, (1, 4, 5))),
    "axes_3": (17, _rows(2, 17, (3, 2, 5), halo((1, 0), (1, 1), (0, 2)))),
    "axes_3_alone": (17, _rows(1, 17, (3, 2, 5))),
}
"""Channels that are no padding, and the channels-last layout."""

SPREAD = {"resnet", "around", "spare", "one_pixel", "axes_3"}
"""Cases whose planes begin on cache lines."""


def _planes(name: str) -> Layout:
    channels, rows = ROWS[name]
    return Layout("nchw", rows.batch, channels, rows.spatial, spread=name in SPREAD)


@pytest.fixture(scope="module")
def library() -> Library:
    scripts = {}
    for name, (channels, rows) in ROWS.items():
        for symbol, x, y in ((f"{name}_out", rows, _planes(name)), (f"{name}_in", _planes(name), rows)):
            scripts[symbol] = build_transpose_kernel(symbol, x, y, channels, 16, 2)
    return Library(scripts, parse_target("cpu", 2))


def draw(name: str) -> torch.Tensor:
    """Return the numbers of a case, [N, C, D, H, W]."""
    channels, rows = ROWS[name]
    return torch.randn(rows.batch, channels, *rows.spatial)


@pytest.mark.parametrize("name", ROWS)
def test_planes_of_a_channels_last_buffer(library: Library, name: str) -> None:
    channels, rows = ROWS[name]
    tensor, x, y = draw(name), poisoned(rows.numel), poisoned(_planes(name).numel)
    view(x, rows)[:, :channels] = tensor
    BoundUnary(library[f"{name}_out"], x, y).run()
    assert torch.equal(view(y, _planes(name)), tensor)
    assert guards_are_intact(y)


@pytest.mark.parametrize("name", ROWS)
def test_channels_last_buffer_of_planes(library: Library, name: str) -> None:
    channels, rows = ROWS[name]
    tensor, y = draw(name), poisoned(rows.numel)
    BoundUnary(library[f"{name}_in"], place(tensor, _planes(name)), y).run()
    assert torch.equal(view(y, rows)[:, :channels], tensor)
    check_halo(y, rows)
    assert guards_are_intact(y)
