"""Toys: splits, concats, shuffles, views."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.channels.toys import GATE, WRONG, Toy, check_toy, eliminate, error_of
from tests.networks import Function, double, image


def conv(inputs: int, outputs: int, size: int = 1, *, padding: int = 0, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=padding, groups=groups)


def trio(width: int = 8, first: int = 4, second: int = 4) -> dict[str, nn.Module]:
    return {"a": conv(3, width), "b": conv(first, 3), "c": conv(second, 2)}


def shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Shuffle channels by view, transpose, view."""
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)


TOYS: dict[str, Toy] = {
    "22 split and joined again": Toy(
        lambda m, x: m.b(torch.cat(m.a(x).relu().split(4, 1), 1)),
        lambda: {"a": conv(3, 8), "b": conv(8, 2)},
        rows={"a": [0, 1, 5]},
        kept={"a": (5, 3), "b": (2, 5)},
    ),
    "23 split three ways": Toy(
        lambda m, x: [layer(y) for layer, y in zip((m.b, m.c, m.d), m.a(x).split([2, 3, 4], 1), strict=True)],
        lambda: {"a": conv(3, 9), "b": conv(2, 2), "c": conv(3, 2), "d": conv(4, 2)},
        rows={"a": [0, 3, 4, 8]},
        kept={"a": (5, 3), "b": (2, 1), "c": (2, 1), "d": (2, 3)},
    ),
    "24 split, one piece changed, joined": Toy(
        lambda m, x: m.c(torch.cat([(y := m.a(x).chunk(2, 1))[0], m.b(y[1]).relu()], 1)),
        lambda: {"a": conv(3, 8), "b": conv(4, 5), "c": conv(9, 2)},
        rows={"a": [0, 6, 7], "b": [2]},
        kept={"a": (5, 3), "b": (4, 2), "c": (2, 7)},
    ),
    "25 split, then flatten": Toy(
        lambda m, x: m.f(m.a(x).split(4, 1)[1].flatten(1)),
        lambda: {"a": conv(3, 8), "f": nn.Linear(4 * 42, 2)},
        rows={"a": [5]},
        kept={"a": (3, 3), "f": (2, 3 * 42)},
    ),
    "26 split that feeds unequal convolutions": Toy(
        lambda m, x: (m.b((y := m.a(x).relu().chunk(2, 1))[0]), m.c(y[1])),
        trio,
        rows={"a": [0, 1, 2, 5]},
        kept={"a": (4, 3), "b": (3, 1), "c": (2, 3)},
    ),
    "27 uneven chunk": Toy(
        lambda m, x: (m.b((y := m.a(x).relu().chunk(2, 1))[0]), m.c(y[1])),
        lambda: trio(7, 4, 3),
        rows={"a": [0, 5]},
        kept={"a": (5, 3), "b": (3, 3), "c": (2, 2)},
    ),
    "28 tuple unpacking": Toy(
        lambda m, x: unpack(m, x),
        lambda: {"a": conv(3, 9), "b": conv(3, 2), "c": conv(3, 2)},
        rows={"a": [0, 4]},
        kept={"a": (5, 3), "b": (2, 2), "c": (2, 3)},
    ),
    "29 nested concat": Toy(
        lambda m, x: m.d(torch.cat([torch.cat([m.a(x), m.b(x)], 1), m.c(x), x], 1)),
        lambda: {"a": conv(3, 4), "b": conv(3, 4), "c": conv(3, 4), "d": conv(15, 2)},
        rows={"a": [1], "b": [0, 3], "c": [2]},
        kept={"a": (3, 3), "b": (2, 3), "c": (3, 3), "d": (2, 11)},
    ),
    "30 concat with itself": Toy(
        lambda m, x: m.b(torch.cat([y := m.a(x), y], 1)),
        lambda: {"a": conv(3, 4), "b": conv(8, 2)},
        columns={"b": [0, 4, 1, 6]},
        kept={"a": (3, 3)},
    ),
    "31 concat on the batch": Toy(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 0)),
        lambda: {"a": conv(3, 4), "b": conv(3, 4), "c": conv(4, 2)},
        rows={"a": [0, 1], "b": [1, 2]},
    ),
    "31 concat on the height": Toy(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 2)),
        lambda: {"a": conv(3, 4), "b": conv(3, 4), "c": conv(4, 2, 3, padding=1)},
        rows={"a": [0, 1], "b": [1, 2]},
    ),
    "31 concat on the height with what is not followed": Toy(
        lambda m, x: m.c(torch.cat([m.a(x).relu(), torch.cumsum(m.b(x), 1)], 2)),
        lambda: {"a": conv(3, 4), "b": conv(3, 4), "c": conv(4, 2)},
        rows={"a": [0, 1, 2, 3]},
        kept={"a": None, "b": (4, 3)},
    ),
    "31 concat on the height, partly dead beside what is not followed": Toy(
        lambda m, x: m.c(torch.cat([m.a(x).relu(), torch.cumsum(m.b(x), 1)], 2)),
        lambda: {"a": conv(3, 4), "b": conv(3, 4), "c": conv(4, 2)},
        rows={"a": [1, 2]},
        kept={"b": (4, 3)},
    ),
    "32 concat with a dead operand": Toy(
        lambda m, x: m.c(torch.cat([m.a(x).relu(), m.b(x).relu()], 1)),
        lambda: {"a": conv(3, 4), "b": conv(3, 4), "c": conv(8, 2)},
        rows={"b": [0, 1, 2, 3]},
        kept={"a": (4, 3), "b": None, "c": (2, 4)},
    ),
    "34 channel shuffle by views": Toy(
        lambda m, x: m.b(shuffle(m.a(x).relu(), 2)),
        lambda: {"a": conv(3, 8), "b": conv(8, 3)},
        rows={"a": [0, 1, 5]},
        kept={"b": (3, 5)},
    ),
    "34 channel shuffle, whole": Toy(
        lambda m, x: m.b(F.channel_shuffle(m.a(x).relu(), 4)),
        lambda: {"a": conv(3, 8), "b": conv(8, 3)},
        rows={"a": [0, 1, 5]},
        kept={"b": (3, 5)},
    ),
    "35 pixel shuffle": Toy(
        lambda m, x: m.b(F.pixel_shuffle(m.a(x).relu(), 2)),
        lambda: {"a": conv(3, 16), "b": conv(4, 2, 3)},
        rows={"a": [0, 1, 2, 3, 5]},
        zeros={"a.bias": [0, 1, 2, 3]},
        kept={"a": (12, 3), "b": (2, 3)},
    ),
    "35 pixel unshuffle": Toy(
        lambda m, x: m.b(F.pixel_unshuffle(m.a(x).relu(), 2)),
        lambda: {"a": conv(3, 4), "b": conv(16, 2)},
        shapes=((2, 3, 8, 6),),
        rows={"a": [1]},
        kept={"a": (3, 3), "b": (2, 12)},
    ),
    "36 flatten of a plane": Toy(
        lambda m, x: m.f(m.a(x).relu().flatten(1)),
        lambda: {"a": conv(3, 4), "f": nn.Linear(4 * 42, 3)},
        rows={"a": [1, 3]},
        kept={"a": (2, 3), "f": (3, 84)},
    ),
    "36 flatten of a map": Toy(
        lambda m, x: m.f(m.b(m.a(x).sigmoid()).flatten(1)),
        lambda: {"a": conv(3, 4), "b": conv(4, 4, 3, padding=1, groups=4), "f": nn.Linear(4 * 42, 3)},
        rows={"a": [1, 3]},
        kept={"a": (2, 3), "f": (3, 84)},
    ),
    "37 one axis to a plane": Toy(
        lambda m, x: m.b(m.f(x).relu().view(2, 4, 3, 2)),
        lambda: {"f": nn.Linear(5, 24), "b": conv(4, 2)},
        shapes=((2, 5),),
        rows={"f": [*range(6, 12), 0, 13]},
        kept={"f": (18, 5), "b": (2, 3)},
    ),
    "38 linear, view, transposed": Toy(
        lambda m, x: m.b(m.f(x).relu().view(2, 4, 3, 2)),
        lambda: {"f": nn.Linear(5, 24), "b": nn.ConvTranspose2d(4, 3, 2, stride=2)},
        shapes=((2, 5),),
        rows={"f": [*range(6, 12)]},
        kept={"f": (18, 5), "b": (3, 3)},
    ),
    "39 reshape and a product": Toy(
        lambda m, x: m.b(m.a(x).relu().reshape(2, 4, 42).transpose(1, 2)) @ m.c(x).reshape(2, 4, 42)[:, :3],
        lambda: {"a": conv(3, 4), "b": nn.Linear(4, 3), "c": conv(3, 4)},
        rows={"a": [1], "b": [0]},
        zeros={"b.bias": [0]},
        kept={"a": (3, 3), "b": (2, 3), "c": (2, 3)},
    ),
}
"""Number in channels.md, section 15, with a name; and the toy."""


def unpack(m: nn.Module, x: torch.Tensor) -> object:
    """Split in three, use two."""
    first, _, last = m.get_submodule("a")(x).split(3, 1)
    return m.get_submodule("b")(first), m.get_submodule("c")(last)


@pytest.mark.parametrize("name", TOYS)
def test_toy(name: str) -> None:
    check_toy(TOYS[name])


def test_channel_shuffle_that_is_not_followed_is_wrong() -> None:
    model = double(Function(lambda m, x: m.b(shuffle(m.a(x), 2)), a=conv(3, 8), b=conv(8, 3)))
    x, mask = image(2, 3, 7, 6), torch.ones(8, 3, 1, 1, dtype=torch.bool)
    mask[1] = False
    *_, error = eliminate(model, {"a.weight": mask}, (x,))
    assert error <= GATE
    with torch.no_grad():
        expected = model(x)
        model.get_parameter("a.bias")[1] = 0
        model.get_parameter("b.weight")[:, 1] = 0  # channel 1 went to place 2
        assert error_of(model(x), expected) > WRONG
