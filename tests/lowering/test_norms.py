"""Layer normalisation between kernels in whole compiled models: which nodes the kernel takes; numbers stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxprune.codegen.cpu import layer_norm
from fxprune.codegen.memory import Pool
from tests.compiling import check, draw_masks, force_kernels, row_groups

Between = Callable[[torch.Tensor], torch.Tensor]


class _Net(nn.Module):
    """Two sparse linear layers with a norm in front and between, whose result is added again."""

    def __init__(self, norm: Callable[[int], nn.Module], between: Between = lambda x: x) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(48, 64), nn.Linear(64, 64), nn.Linear(64, 32)
        self.before, self.norm, self.between = norm(48), norm(64), between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(self.before(x))
        x = self.norm(x)
        x = x + F.gelu(self.second(x))
        y: torch.Tensor = self.third(self.between(x))
        return y


def _count(monkeypatch: pytest.MonkeyPatch, model: nn.Module, x: torch.Tensor, family: str = "rows") -> int:
    """Compile and compare; returns how many norm kernels were written."""
    written: list[str] = []

    def build(name: str, work: layer_norm.NormWorkload) -> str:
        written.append(name)
        return layer_norm.build_norm_kernel(name, work)

    monkeypatch.setattr("fxprune.lowering.unary.build_norm_kernel", build)
    force_kernels(monkeypatch, family)
    check(model.eval(), draw_masks(model, row_groups(32)), x)
    return len(written)


def _randomised(channels: int) -> nn.Module:
    norm = nn.LayerNorm(channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "weights": _randomised,
    "no bias": lambda channels: nn.LayerNorm(channels, bias=False),
    "no weights": lambda channels: nn.LayerNorm(channels, elementwise_affine=False, eps=1e-3),
}


@pytest.mark.parametrize("shape", [(7, 48), (2, 5, 48), (1, 2, 3, 48)])
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_next_to_linear_layers_is_a_kernel(
    monkeypatch: pytest.MonkeyPatch, name: str, shape: tuple[int, ...]
) -> None:
    assert _count(monkeypatch, _Net(NORMS[name]), torch.randn(shape)) == 2


@pytest.mark.parametrize(
    "norm",
    [
        lambda channels: nn.LayerNorm([5, channels]),
        lambda channels: nn.Sequential(nn.Tanh(), nn.LayerNorm(channels), nn.Tanh()),
    ],
    ids=["two axes", "torch around"],
)
def test_others_stay_on_torch(monkeypatch: pytest.MonkeyPatch, norm: Callable[[int], nn.Module]) -> None:
    assert _count(monkeypatch, _Net(norm), torch.randn(2, 5, 48)) == 0


def test_channels_that_make_no_vectors_stay_on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(48, 37), nn.LayerNorm(37), nn.Linear(37, 64))
    assert _count(monkeypatch, model, torch.randn(3, 48)) == 0


def test_the_result_may_be_what_leaves_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(48, 64), _randomised(64))
    assert _count(monkeypatch, model, torch.randn(3, 48)) == 1


def test_weights_of_all_norms_share_a_large_page(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def allocate(cells: int) -> Pool:
        sizes.append(cells)
        return Pool(cells)

    monkeypatch.setattr("fxprune.lowering.unary.Pool", allocate)
    _count(monkeypatch, _Net(_randomised), torch.randn(3, 48))
    assert 2 * (48 + 64) in sizes
    assert all(size in (0, 2 * (48 + 64)) for size in sizes)
