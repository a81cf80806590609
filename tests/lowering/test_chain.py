"""Neighbouring kernels as one call: what is chained, what is read from inside, and that the numbers stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fxprune import CompiledModule
from fxprune.lowering.chain import ChainModule, HeldModule
from tests.compiling import check, draw_masks, force_kernels, row_groups

Net = Callable[["_Layers", torch.Tensor], object]


class _Layers(nn.Module):
    """Three sparse layers and a sparse head, joined by `join`."""

    def __init__(self, join: Net) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(32, 32, 3, padding=1) for _ in range(3))
        self.head, self.join = nn.Linear(32, 32), join

    def forward(self, x: torch.Tensor) -> object:
        return self.join(self, x)


def _straight(net: _Layers, x: torch.Tensor) -> object:
    return net.third(torch.relu(net.second(torch.relu(net.first(x)))))


def _read_inside(net: _Layers, x: torch.Tensor) -> object:
    one = net.first(x)
    two = net.second(one)
    return net.third(two), torch.sin(one), torch.cumsum(two, 1), two


def _interrupted(net: _Layers, x: torch.Tensor) -> object:
    one = net.second(net.first(x))
    return net.third(torch.cumsum(one, 1)) + one


def _with_head(net: _Layers, x: torch.Tensor) -> object:
    return net.head(torch.relu(net.second(net.first(x))).mean((2, 3)))


def _with_flat_head(net: _Layers, x: torch.Tensor) -> object:
    return net.head(nn.functional.adaptive_avg_pool2d(net.first(x), 1).flatten(1))


def _with_unrelated_head(net: _Layers, x: torch.Tensor) -> object:
    return net.head(nn.functional.adaptive_avg_pool2d(net.first(x), 1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _compile(monkeypatch: pytest.MonkeyPatch, join: Net) -> CompiledModule:
    force_kernels(monkeypatch, "rows")
    net = _Layers(join).eval()
    return check(net, draw_masks(net, row_groups(8, 0.5)), torch.randn(2, 32, 9, 9))


def _chains(compiled: CompiledModule) -> list[int]:
    """Return the length of every chain."""
    return [len(m.names) for m in compiled.graph_module.modules() if isinstance(m, ChainModule)]


@pytest.mark.parametrize(
    ("join", "chains", "held"),
    [
        (_straight, [3], 0),
        (_read_inside, [3], 2),
        (_interrupted, [2], 0),
        (_with_head, [4], 0),
        (_with_flat_head, [3], 0),
    ],
)
def test_neighbours_are_chained(monkeypatch: pytest.MonkeyPatch, join: Net, chains: list[int], held: int) -> None:
    compiled = _compile(monkeypatch, join)
    assert _chains(compiled) == chains
    assert sum(isinstance(module, HeldModule) for module in compiled.graph_module.modules()) == held


def test_a_head_that_reads_no_rows_of_the_pool_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    _compile(monkeypatch, _with_unrelated_head)


def test_a_second_call_does_not_change_the_first_result(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = _compile(monkeypatch, _read_inside)
    x = torch.randn(2, 32, 9, 9)
    first = compiled(x)
    kept = [tensor.clone() for tensor in first]
    compiled(torch.randn(2, 32, 9, 9))
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(first, kept, strict=True))
