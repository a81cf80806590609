"""Networks drawn block by block, for tests of properties."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from tests.networks import Function, double

PLANE = (6, 5)
"""Height and width of every activation."""


def _chain(width: int) -> tuple[nn.Module, int]:
    return nn.Sequential(nn.Conv2d(width, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()), 6


def _sigmoid(width: int) -> tuple[nn.Module, int]:
    return nn.Sequential(nn.Conv2d(width, 8, 1), nn.Sigmoid()), 8


def _residual(width: int) -> tuple[nn.Module, int]:
    layers = {"a": nn.Conv2d(width, 6, 3, padding=1), "b": nn.Conv2d(6, width, 1), "n": nn.BatchNorm2d(width)}
    return Function(lambda m, x: F.relu(x + m.n(m.b(F.relu(m.a(x))))), **layers), width


def _projected(width: int) -> tuple[nn.Module, int]:
    layers = {"a": nn.Conv2d(width, 8, 3, padding=1), "b": nn.Conv2d(width, 8, 1)}
    return Function(lambda m, x: m.a(x) + m.b(x), **layers), 8


def _concat(width: int) -> tuple[nn.Module, int]:
    layers = {"a": nn.Conv2d(width, 3, 1), "b": nn.Conv2d(3, 4, 3, padding=1)}
    return Function(lambda m, x: torch.cat([y := F.hardswish(m.a(x)), x, m.b(y)], 1), **layers), width + 7


def _depthwise(width: int) -> tuple[nn.Module, int]:
    layers = {"d": nn.Conv2d(width, width, 3, padding=1, groups=width), "n": nn.BatchNorm2d(width)}
    return Function(lambda m, x: F.relu6(m.n(m.d(x))), **layers), width


def _grouped(width: int) -> tuple[nn.Module, int]:
    even = 2 * (width // 2)
    layers = {"g": nn.Conv2d(even, 6, 3, padding=1, groups=2)}
    return Function(lambda m, x: F.relu(m.g(x[:, :even])), **layers), 6


def _gate(width: int) -> tuple[nn.Module, int]:
    layers = {"a": nn.Conv2d(width, 3, 1), "b": nn.Conv2d(3, width, 1)}
    return Function(lambda m, x: x * m.b(F.relu(m.a(x.mean((2, 3), keepdim=True)))).sigmoid(), **layers), width


def _attention(width: int) -> tuple[nn.Module, int]:
    layers = {name: nn.Linear(width, 8) for name in "qkv"} | {"o": nn.Linear(8, width), "n": nn.LayerNorm(width)}
    return Function(_attend, **layers), width


def _attend(m: nn.Module, x: torch.Tensor) -> object:
    tokens = x.flatten(2).transpose(1, 2)
    y = m.get_submodule("n")(tokens)
    q, k, v = (m.get_submodule(name)(y).reshape(x.shape[0], -1, 2, 4).transpose(1, 2) for name in "qkv")
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return (tokens + m.get_submodule("o")(y)).transpose(1, 2).reshape(x.shape)


def _shuffle(width: int) -> tuple[nn.Module, int]:
    groups = 2 if width % 2 == 0 else 1
    layers = {"a": nn.Conv2d(width, width, 1)}
    return Function(lambda m, x: F.channel_shuffle(m.a(x), groups), **layers), width


def _views(width: int) -> tuple[nn.Module, int]:
    layers = {"a": nn.Conv2d(width, 8, 1)}
    return Function(
        lambda m, x: F.relu(m.a(x)).view(x.shape[0], 2, 4, *PLANE).transpose(1, 2).reshape(-1, 8, *PLANE), **layers
    ), 8


def _split(width: int) -> tuple[nn.Module, int]:
    first = max(1, width // 3)
    layers = {"a": nn.Conv2d(first, 4, 1), "b": nn.Conv2d(width - first, 4, 3, padding=1)}
    return Function(
        lambda m, x: torch.cat([m.b((y := x.split([first, width - first], 1))[1]), F.elu(m.a(y[0]))], 1), **layers
    ), 8


def _pool(width: int) -> tuple[nn.Module, int]:
    return nn.Sequential(nn.AvgPool2d(3, 1, padding=1), nn.MaxPool2d(3, 1, padding=1)), width


BLOCKS: dict[str, Callable[[int], tuple[nn.Module, int]]] = {
    "chain": _chain,
    "sigmoid": _sigmoid,
    "residual": _residual,
    "projected": _projected,
    "concat": _concat,
    "depthwise": _depthwise,
    "grouped": _grouped,
    "gate": _gate,
    "attention": _attention,
    "shuffle": _shuffle,
    "views": _views,
    "split": _split,
    "pool": _pool,
}
"""Name to what builds a block for a number of channels; returns it with the number of its result."""

HEADS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda _: nn.Identity(),
    "mean": lambda width: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)),
    "flatten": lambda width: nn.Sequential(nn.Flatten(), nn.Linear(width * PLANE[0] * PLANE[1], 3)),
}
"""Name to what ends a network."""


def draw_network(blocks: list[str], head: str) -> nn.Module:
    """Return a network of blocks in float64, from images with three channels."""
    parts, width = [], 3
    for name in blocks:
        part, width = BLOCKS[name](width)
        parts.append(part)
    return double(nn.Sequential(*parts, HEADS[head](width)))


def draw_masks(model: nn.Module, share: float) -> dict[str, torch.Tensor]:
    """Return masks without rows, columns, cells, or nothing, at random for every layer; some biases become zero."""
    masks = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        mask = torch.ones(module.weight.shape, dtype=torch.bool)
        kind = int(torch.randint(4, ()))
        if kind == 0:
            mask[torch.rand(mask.shape[0]) < share] = False
        elif kind == 1:
            mask[:, torch.rand(mask.shape[1]) < share] = False
        elif kind == 2:
            mask = torch.rand(mask.shape) >= 0.5 + share / 2
        masks[f"{name}.weight"] = mask
        if module.bias is not None and bool(torch.rand(()) < 0.3):
            module.bias.data.zero_()
    return masks
