"""Which layers write into one residual stream."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxprune
from fxprune import find_coupled
from tests.networks import Function

X = torch.randn(1, 4, 8, 8)


def conv(groups: int = 1, outputs: int = 4) -> nn.Conv2d:
    return nn.Conv2d(4, outputs, 3, padding=1, groups=groups)


NETWORKS: dict[str, tuple[Callable[..., object], list[list[str]]]] = {
    "chain": (lambda m, x: m.b(m.a(x).relu()), []),
    "residual": (lambda m, x: (y := m.a(x)) + m.b(y), [["a.weight", "b.weight"]]),
    "two ends by another way": (lambda m, x: m.b(x.relu()) + m.a(x).relu(), [["b.weight", "a.weight"]]),
    "three ends": (lambda m, x: (y := m.a(x)) + m.b(y) + m.c(y), [["a.weight", "b.weight", "c.weight"]]),
    "two streams meet": (
        lambda m, x: ((y := m.a(x)) + m.b(x)) + (m.c(y) + m.d(y)),
        [["a.weight", "b.weight", "c.weight", "d.weight"]],
    ),
    "through pool and norm": (
        lambda m, x: m.norm(F.max_pool2d(m.a(x), 2)) + F.avg_pool2d(m.b(x), 2),
        [["a.weight", "b.weight"]],
    ),
    "depthwise": (lambda m, x: m.b(m.depthwise(m.a(x)).relu()), [["a.weight", "depthwise.weight"]]),
    "unknown operator between": (lambda m, x: m.a(x).flip(1) + m.b(x), []),
    "broadcast": (lambda m, x: m.a(x) + m.b(x).mean((2, 3), keepdim=True), []),
    "input": (lambda m, x: m.a(x) + x, []),
    "gate": (lambda m, x: m.a(x) * m.b(x).sigmoid(), [["a.weight", "b.weight"]]),
    "shared layer": (lambda m, x: (y := m.a(x)) + m.b(m.a(y)), [["a.weight", "b.weight"]]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_finds(name: str) -> None:
    function, expected = NETWORKS[name]
    layers = {"a": conv(), "b": conv(), "c": conv(), "d": conv(), "depthwise": conv(4), "norm": nn.BatchNorm2d(4)}
    assert find_coupled(Function(function, **layers).eval(), X) == expected


def test_coupled_refill_leaves_one_set_of_rows() -> None:
    model = Function(lambda m, x: m.c((y := m.a(x)) + m.b(y).relu()), a=conv(), b=conv(), c=conv()).eval()
    masks = {f"{name}.weight": torch.rand(4, 4, 3, 3) < 0.5 for name in "abc"}
    found = fxprune.refill(model, masks, coupled=find_coupled(model, (X,)))
    assert torch.equal(found["a.weight"], found["b.weight"])
