"""Pools that kernels compute after their layer, in whole compiled models: which ones, and that the numbers stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxprune
from fxprune import CompiledModule
from fxprune.lowering import program
from fxprune.lowering.pooled import Pooled, pool_in_kernels
from fxprune.lowering.profile import time_layers
from tests.compiling import (
    QUICK,
    cells,
    check,
    draw_masks,
    everything,
    force_families,
    force_kernels,
    row_groups,
    shuffled,
)

Pool = Callable[[torch.Tensor], torch.Tensor]

HALVES = partial(F.max_pool2d, kernel_size=2)


class _Plain(nn.Module):
    """Three convolutions, each with a pool behind it, and two linear layers, as VGG has them."""

    def __init__(self, size: int, pools: tuple[Pool, Pool, Pool]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(5, 64, 3, padding=1), nn.Conv2d(64, 33, 3, padding=1)
        self.third, self.pools = nn.Conv2d(33, 48, 1), pools
        with torch.no_grad():
            cells = self._images(torch.zeros(1, 5, size, size)).numel()
        self.hidden, self.head = nn.Linear(cells, 32), nn.Linear(32, 10)

    def _images(self, x: torch.Tensor) -> torch.Tensor:
        for layer, pool in zip((self.first, self.second, self.third), self.pools, strict=True):
            x = pool(torch.relu(layer(x)))
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(torch.relu(self.hidden(self._images(x).flatten(1))))
        return y


@pytest.fixture
def merged(monkeypatch: pytest.MonkeyPatch) -> list[Pooled]:
    """Kernels whatever dense torch takes and however small images are, and what every lowering merged."""
    force_kernels(monkeypatch, "rows")
    return _watch(monkeypatch)


def _watch(monkeypatch: pytest.MonkeyPatch) -> list[Pooled]:
    monkeypatch.setattr("fxprune.codegen.row_schedules._POOLED_CELLS", 0)
    found: list[Pooled] = []

    def watched(*args: object) -> Pooled:
        found.append(pool_in_kernels(*args))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(program, "pool_in_kernels", watched)
    return found


def _compile(model: nn.Module, size: int = 16, batch: int = 2) -> CompiledModule:
    return check(model.eval(), draw_masks(model, row_groups(32)), torch.randn(batch, 5, size, size))


def _windows(merged: list[Pooled]) -> list[tuple[str, int, int]]:
    return [(one.kind, one.height, one.width) for one in merged[-1].windows.values()]


def test_plain_networks_pool_in_their_kernels(merged: list[Pooled]) -> None:
    compiled = _compile(_Plain(16, (HALVES, HALVES, lambda x: F.avg_pool2d(x, 2))))
    assert _windows(merged) == [("max", 2, 2), ("max", 2, 2), ("mean", 2, 2)]
    assert [layer.name for layer in compiled.report.layers] == ["first", "second", "third", "hidden", "head"]
    called = [str(node.target) for node in compiled.graph_module.graph.nodes if node.op == "call_function"]
    assert not any("pool" in name or "conv" in name for name in called)


@pytest.mark.parametrize("masks", [shuffled(row_groups(16)), cells(0.2)], ids=["shuffled", "cells"])
def test_rows_in_any_order(merged: list[Pooled], masks: Callable[..., torch.Tensor]) -> None:
    model = _Plain(16, (HALVES, HALVES, HALVES)).eval()
    check(model, draw_masks(model, masks), torch.randn(2, 5, 16, 16))
    assert len(_windows(merged)) == 3


def test_windows_that_leave_cells_over(merged: list[Pooled]) -> None:
    kernels = ((2, 2), (3, 2), (1, 2), (2, 1), (3, 3))
    pools = [partial(pool, kernel_size=kernel) for kernel in kernels for pool in (F.max_pool2d, F.avg_pool2d)]
    _compile(_Branches(pools), 29)
    assert _windows(merged) == [(kind, *kernel) for kernel in kernels for kind in ("max", "mean")]


_OTHERS: dict[str, Pool] = {
    "overlap": lambda x: F.max_pool2d(x, 3, 2, 1),
    "step of one": lambda x: F.max_pool2d(x, 2, 1),
    "step of four": lambda x: F.max_pool2d(x, (1, 5), (1, 4)),
    "padding": lambda x: F.max_pool2d(x, (1, 5), padding=(0, 1)),
    "half a window": lambda x: F.max_pool2d(x, 3, ceil_mode=True),
    "dilation": lambda x: F.max_pool2d(x, 2, dilation=2),
    "one cell": lambda x: F.max_pool2d(x, 1),
    "two readers": lambda x: F.max_pool2d(x, 2) + x.mean(),
    "another divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "the image": lambda x: x.mean((2, 3), keepdim=True),
    "a large window": lambda x: F.max_pool2d(x, 8),
}


class _Branches(nn.Module):
    """One convolution for each pool, side by side."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(5, 32, 3, padding=1) for _ in pools)
        self.pools = pools

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = zip(self.layers, self.pools, strict=True)
        return torch.cat([pool(torch.relu(layer(x))).flatten(1) for layer, pool in both], 1)


def test_what_a_kernel_cannot_pool(merged: list[Pooled]) -> None:
    _compile(_Branches([*_OTHERS.values(), HALVES]))
    assert _windows(merged) == [("max", 2, 2)]


def test_a_layer_with_a_residual_does_not_pool(merged: list[Pooled]) -> None:
    class _Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(5, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.first(x))
            return F.max_pool2d(torch.relu(self.second(x) + x), 2)

    _compile(_Residual())
    assert not _windows(merged)


def test_small_images_are_pooled_by_a_kernel_of_their_own(
    merged: list[Pooled], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxprune.codegen.row_schedules._POOLED_CELLS", 64 * 16 * 16)
    _compile(_Plain(16, (HALVES, HALVES, HALVES)), batch=1)
    assert len(_windows(merged)) == 1, "of 64, 33 and 48 channels at 16x16, 8x8, 4x4"


def test_planes_do_not_pool_in_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    merged = _watch(monkeypatch)
    force_families(monkeypatch, lambda shape: shape.channels_in == 64)
    _compile(_Plain(16, (HALVES, HALVES, HALVES)))
    assert len(_windows(merged)) == 1


def test_without_kernels_nothing_is_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    merged = _watch(monkeypatch)
    monkeypatch.setattr("fxprune.lowering.select.predict_dense_us", lambda *_: 0.0)
    _compile(_Plain(16, (HALVES, HALVES, HALVES)))
    assert _windows(merged) == []


def test_not_a_number_stays(merged: list[Pooled]) -> None:
    model = _Plain(16, (HALVES, HALVES, HALVES)).eval()
    masks, x = draw_masks(model, everything), torch.randn(1, 5, 32, 32)
    images = fxprune.compile(_Images(model).eval(), masks_of(masks), example_inputs=(x,), options=QUICK)
    assert len(_windows(merged)) == 3
    x[0, 2, 5, 6] = torch.nan
    with torch.no_grad():
        wanted = _Images(model)(x).isnan()
    assert wanted.any()
    assert not wanted.all()
    assert bool(images(x).isnan()[wanted].all())


class _Images(nn.Module):
    """The part of the network that computes images."""

    def __init__(self, inner: _Plain) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner._images(x)


def masks_of(masks: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the masks of the layers that compute images, by their names in `_Images`."""
    return {f"inner.{name}": mask for name, mask in masks.items() if name.split(".")[0] in ("first", "second", "third")}


def test_times_and_artifacts_know_the_layer(merged: list[Pooled], tmp_path: Path) -> None:
    compiled, x = _compile(_Plain(16, (HALVES, HALVES, HALVES))), torch.randn(2, 5, 16, 16)
    made = compiled._last().program
    assert isinstance(made, program.Program)
    assert set(time_layers(made, [x])) == {node.name for node in merged[-1].cases}
    expected = compiled(x)
    compiled.save(tmp_path / "model.fxp")
    assert torch.equal(fxprune.load(tmp_path / "model.fxp")(x), expected)
    assert len(_windows(merged)) == 3


@settings(max_examples=4)
@given(
    size=st.integers(8, 21),
    windows=st.tuples(*[st.sampled_from([(1, 2), (2, 1), (2, 2)])] * 3),
    mean=st.booleans(),
    batch=st.integers(1, 3),
)
def test_windows_of_every_size(size: int, windows: tuple[tuple[int, int], ...], mean: bool, batch: int) -> None:
    pool = F.avg_pool2d if mean else F.max_pool2d
    first, second, third = (partial(pool, kernel_size=kernel) for kernel in windows)
    with pytest.MonkeyPatch.context() as monkeypatch:
        force_kernels(monkeypatch, "rows")
        merged = _watch(monkeypatch)
        _compile(_Plain(size, (first, second, third)), size, batch)
    assert set(_windows(merged)) <= {("mean" if mean else "max", *kernel) for kernel in windows}
