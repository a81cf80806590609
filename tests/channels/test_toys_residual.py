"""Toys: additions, shared tensors, shared layers, broadcasts, gates."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fxprune.passes import EliminateChannels
from tests.channels.toys import GATE, WRONG, Toy, check_toy, eliminate, error_of
from tests.networks import Function, double, image


def conv(inputs: int, outputs: int, size: int = 1, *, padding: int = 0, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=padding, groups=groups)


def branches(width: int = 8) -> dict[str, nn.Module]:
    return {"a": conv(3, width), "b": conv(3, width), "c": conv(width, 4)}


def gated() -> dict[str, nn.Module]:
    return {"a": conv(3, 8), "e": conv(8, 4), "f": conv(4, 8), "b": conv(8, 2)}


TOYS: dict[str, Toy] = {
    "01 add, sets apart": Toy(
        lambda m, x: m.c(m.a(x) + m.b(x)),
        branches,
        rows={"a": [0, 1, 2], "b": [2, 3]},
        kept={"a": (5, 3), "b": (6, 3), "c": (4, 7)},
        options=EliminateChannels(adds="compact"),
    ),
    "01 add, one inside the other": Toy(
        lambda m, x: m.c((m.a(x) + m.b(x)).relu()),
        branches,
        rows={"a": [0, 1, 2], "b": [2]},
        kept={"a": (5, 3), "b": (7, 3), "c": (4, 7)},
        options=EliminateChannels(adds="compact"),
    ),
    "01 add, the same set": Toy(
        lambda m, x: m.c(m.a(x).sigmoid() + m.b(x)),
        branches,
        rows={"a": [0, 1, 5], "b": [0, 1, 5]},
        kept={"a": (5, 3), "b": (5, 3), "c": (4, 5)},
    ),
    "01 add, too little to gain": Toy(
        lambda m, x: m.c(m.a(x) + m.b(x)),
        branches,
        rows={"a": [0, 1, 2], "b": [2, 3]},
        kept={"a": (7, 3), "b": (7, 3), "c": (4, 7)},
        refusal="2 of 7 channels are dead and stay: adding what is left into the sum add would cost more",
    ),
    "01 add, much to gain": Toy(
        lambda m, x: m.c(m.a(x) + m.b(x)),
        lambda: {"a": conv(64, 8, 3), "b": conv(64, 8, 3), "c": conv(8, 4)},
        shapes=((1, 64, 16, 16),),
        rows={"a": [0, 1, 2], "b": [2]},
        kept={"a": (5, 64), "b": (7, 64), "c": (4, 7)},
    ),
    "44 much to gain behind a gate": Toy(
        lambda m, x: excite(m, m.a(x).sigmoid()),
        lambda: gated() | {"a": conv(64, 8, 3)},
        shapes=((1, 64, 16, 16),),
        rows={"a": [0, 1]},
        kept={"a": (6, 64), "e": (4, 6), "b": (2, 8)},
    ),
    "01 add, aligned": Toy(
        lambda m, x: m.c(m.a(x) + m.b(x)),
        branches,
        rows={"a": [0, 1, 2], "b": [2, 3]},
        kept={"a": (7, 3), "b": (7, 3), "c": (4, 7)},
        options=EliminateChannels(adds="align"),
    ),
    "01 subtraction with a factor": Toy(
        lambda m, x: m.c(torch.sub(m.a(x), m.b(x), alpha=3)), branches, rows={"a": [0, 1, 2], "b": [0, 3]}
    ),
    "02 one tensor, three consumers": Toy(
        lambda m, x: (m.b(y := m.a(x).relu()), m.c(y), m.d(y)),
        lambda: {"a": conv(3, 8), "b": conv(8, 2), "c": conv(8, 3), "d": conv(8, 4, 3, padding=1)},
        columns={"b": [0, 1, 2], "c": [0, 1, 3], "d": [0, 1, 4]},
        kept={"a": (6, 3), "b": (2, 6)},
    ),
    "03 residual with unpruned last layer": Toy(
        lambda m, x: m.d((m.c(m.b(y := m.a(x).relu()).relu()) + y).relu()),
        lambda: {"a": conv(3, 8), "b": conv(8, 6, 3, padding=1), "c": conv(6, 8), "d": conv(8, 2)},
        rows={"a": [0, 1], "b": [2, 3, 4]},
        kept={"c": (8, 3), "d": (2, 8)},
    ),
    "04 one convolution called twice": Toy(
        lambda m, x: m.c(m.b(m.b(m.a(x)).relu()).relu()),
        lambda: {"a": conv(3, 6), "b": conv(6, 6), "c": conv(6, 2)},
        rows={"a": [0, 1], "b": [0, 2]},
    ),
    "05 embedding tied to the output": Toy(
        lambda m, x: F.linear(m.b(m.e(x.abs().long() % 5)).relu(), m.e.weight),
        lambda: {"e": nn.Embedding(5, 6), "b": nn.Linear(6, 6)},
        shapes=((2, 3),),
        rows={"b": [0, 1]},
    ),
    "15 elementwise on the wrong axis": Toy(
        lambda m, x: m.b(m.a(x) + m.a(x).mean((0, 2, 3))),
        lambda: {"a": conv(3, 6), "b": conv(6, 2)},
        shapes=((2, 3, 7, 6),),
        rows={"a": [0, 1]},
    ),
    "16 gate over space": Toy(
        lambda m, x: m.b((y := m.a(x).relu()) * m.g(y).sigmoid()),
        lambda: {"a": conv(3, 6), "g": conv(6, 1), "b": conv(6, 2)},
        rows={"a": [0, 1]},
    ),
    "16 gate over space, dead": Toy(
        lambda m, x: m.b((y := m.a(x).relu()) * m.g(y).sigmoid()),
        lambda: {"a": conv(3, 6), "g": conv(6, 1), "b": conv(6, 2)},
        rows={"g": [0]},
        kept={"g": None},
    ),
    "17 broadcast linear and concat": Toy(
        lambda m, x: m.b(
            torch.cat([y := m.a(x).relu(), m.f(y.mean((2, 3)))[:, :, None, None].expand(-1, -1, 7, 6)], 1)
        ),
        lambda: {"a": conv(3, 6), "f": nn.Linear(6, 4), "b": conv(10, 2)},
        rows={"a": [0, 1], "f": [2]},
    ),
    "33 cat and add in a loop": Toy(
        lambda m, x: res2net(m, x),
        lambda: {"a": conv(3, 8), **{f"s{i}": conv(2, 2, 3, padding=1) for i in range(3)}, "b": conv(8, 8)},
        rows={"a": [0, 3, 6], "s0": [0], "s1": [1], "s2": [0, 1]},
    ),
    "43 scalar slope": Toy(
        lambda m, x: m.c(m.p(m.a(x))),
        lambda: {"a": conv(3, 6), "p": nn.PReLU(), "c": conv(6, 2)},
        rows={"a": [0, 1]},
        kept={"a": (4, 3), "c": (2, 4)},
    ),
    "43 vector of slopes": Toy(
        lambda m, x: m.c(m.p(m.a(x))),
        lambda: {"a": conv(3, 6), "p": nn.PReLU(6), "c": conv(6, 2)},
        rows={"a": [0, 1]},
        kept={"a": (4, 3), "c": (2, 4)},
    ),
    "44 squeeze and excite by linear layers": Toy(
        lambda m, x: m.b((y := m.a(x).relu()) * m.f(m.e(y.mean((2, 3))).relu()).sigmoid()[:, :, None, None]),
        lambda: {"a": conv(3, 8), "e": nn.Linear(8, 4), "f": nn.Linear(4, 8), "b": conv(8, 2)},
        rows={"a": [0, 1], "e": [1], "f": [3]},
        kept={"e": (3, 8 - 2), "b": (2, 6)},
        zeros={"a.bias": [0, 1]},
    ),
    "44 squeeze and excite by convolutions": Toy(
        lambda m, x: m.b((y := m.a(x).relu()) * F.hardsigmoid(m.f(m.e(y.mean((2, 3), keepdim=True)).relu()))),
        lambda: {"a": conv(3, 8), "e": conv(8, 4), "f": conv(4, 8), "b": conv(8, 2, 3, padding=1)},
        rows={"a": [0, 1], "e": [1], "f": [3]},
    ),
    "44 dead gate": Toy(
        lambda m, x: m.b((y := m.a(x).relu()) * m.f(m.e(y.mean((2, 3), keepdim=True)).relu()).sigmoid()),
        lambda: {"a": conv(3, 8), "e": conv(8, 4), "f": conv(4, 8), "b": conv(8, 2)},
        rows={"f": list(range(8))},
        kept={"e": None, "f": None},
    ),
    "08 depthwise rows alone": Toy(
        lambda m, x: m.b((y := m.a(x).relu()) + m.d(y).sigmoid()),
        lambda: {"a": conv(3, 8), "d": conv(8, 8, 3, padding=1, groups=8), "b": conv(8, 2)},
        rows={"d": [1, 2]},
        kept={"a": (8, 3), "d": (6, 1), "b": (2, 8)},
        options=EliminateChannels(adds="compact"),
    ),
    "08 depthwise rows alone, too little to gain": Toy(
        lambda m, x: m.b((y := m.a(x).relu()) + m.d(y).sigmoid()),
        lambda: {"a": conv(3, 8), "d": conv(8, 8, 3, padding=1, groups=8), "b": conv(8, 2)},
        rows={"d": [1, 2]},
        kept={"a": (8, 3), "d": (8, 1), "b": (2, 8)},
        refusal="2 of 8 channels are dead and stay: ",
    ),
    "44 constants behind a gate": Toy(
        lambda m, x: excite(m, m.a(x).sigmoid()),
        gated,
        rows={"a": [0, 1], "e": [1]},
        kept={"a": (6, 3), "e": (3, 6), "f": (8, 3), "b": (2, 8)},
        options=EliminateChannels(adds="compact"),
    ),
    "44 constants behind a gate, some of the gate known": Toy(
        lambda m, x: excite(m, m.a(x).sigmoid()),
        gated,
        rows={"a": [0, 1], "f": [1, 2]},
        kept={"a": (6, 3), "f": (6, 4), "b": (2, 7)},
        options=EliminateChannels(adds="compact"),
    ),
    "44 all channels behind a gate are known": Toy(
        lambda m, x: m.b(m.a(x).sigmoid() * m.g(x.mean((2, 3), keepdim=True)).sigmoid()),
        lambda: {"a": conv(3, 8), "g": conv(3, 8), "b": conv(8, 2)},
        rows={"a": list(range(8))},
        kept={"a": None, "b": (2, 8)},
    ),
    "44 constants behind a gate, aligned": Toy(
        lambda m, x: excite(m, m.a(x).sigmoid()),
        gated,
        rows={"a": [0, 1], "e": [1]},
        kept={"a": (8, 3), "e": (3, 8), "b": (2, 8)},
        refusal="2 of 8 channels are dead and stay: their constants meet varying values in mul",
        options=EliminateChannels(adds="align"),
    ),
    "44 constants behind a gate over two axes": Toy(
        lambda m, x: m.b((m.a(x).sigmoid().view(2, 2, 4, 7, 6) * x.mean((1, 2, 3)).view(2, 1, 1, 1, 1)).flatten(1, 2)),
        lambda: {"a": conv(3, 8), "b": conv(8, 2)},
        rows={"a": [0, 1]},
        kept={"a": (8, 3), "b": (2, 8)},
        refusal="2 of 8 channels are dead and stay: their constants meet varying values in mul",
    ),
    "44 constants that differ over space behind a gate": Toy(
        lambda m, x: excite(m, m.d(m.a(x).sigmoid()).sigmoid()),
        lambda: {**gated(), "d": conv(8, 8, 3, padding=1, groups=8)},
        rows={"a": [0, 1], "d": [2]},
        kept={"a": (5, 3), "d": (5, 1), "e": (4, 5), "b": (2, 8)},
    ),
    "44 product of two branches": Toy(
        lambda m, x: m.c(m.a(x) * m.b(x).sigmoid()),
        branches,
        rows={"a": [0, 1, 2], "b": [2, 3]},
        kept={"a": (5, 3), "b": (6, 3), "c": (4, 7)},
        options=EliminateChannels(adds="compact"),
    ),
    "45 glu": Toy(
        lambda m, x: m.b(F.glu(m.a(x), 1)),
        lambda: {"a": conv(3, 8), "b": conv(4, 2)},
        rows={"a": [0, 5]},
    ),
    "45 glu, unused": Toy(
        lambda m, x: m.b(F.glu(m.a(x), 1)),
        lambda: {"a": conv(3, 8), "b": conv(4, 2)},
        columns={"b": [1, 2]},
        kept={"a": (4, 3), "b": (2, 2)},
    ),
}
"""Number in channels.md, section 15, with a name; and the toy."""


def excite(m: nn.Module, y: torch.Tensor) -> torch.Tensor:
    """Squeeze, excite, project."""
    squeezed = m.get_submodule("e")(y.mean((2, 3), keepdim=True)).relu()
    return torch.as_tensor(m.get_submodule("b")(y * m.get_submodule("f")(squeezed).sigmoid()))


def res2net(m: nn.Module, x: torch.Tensor) -> object:
    """Split into four, add each piece's convolution to the next piece, join."""
    first, *rest = m.get_submodule("a")(x).split(2, 1)
    outputs, carried = [first], None
    for number, piece in enumerate(rest):
        carried = m.get_submodule(f"s{number}")(piece if carried is None else piece + carried).relu()
        outputs.append(carried)
    return m.get_submodule("b")(torch.cat(outputs, 1))


@pytest.mark.parametrize("name", TOYS)
def test_toy(name: str) -> None:
    check_toy(TOYS[name])


def test_constants_lost_on_a_residual_branch_are_wrong() -> None:
    model = double(Function(lambda m, x: m.c(m.a(x) + m.b(x)), **branches()))
    x, mask = image(2, 3, 7, 6), torch.ones(8, 3, 1, 1, dtype=torch.bool)
    mask[:3] = False
    *_, error = eliminate(model, {"a.weight": mask}, (x,))
    assert error <= GATE
    with torch.no_grad():
        expected = model(x)
        model.get_parameter("a.bias")[:3] = 0
        assert error_of(model(x), expected) > WRONG


def test_constants_forgotten_behind_a_gate_are_wrong() -> None:
    toy = TOYS["44 constants behind a gate"]
    model, (x,) = toy.build(), toy.inputs()
    *_, error = eliminate(model, toy.masks(model), (x,))
    assert error <= GATE

    def forget(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Take the two dead channels of the product for 0."""
        return (inputs[0].index_fill(1, torch.tensor([0, 1]), 0),)

    with torch.no_grad():
        expected = model(x)
        model.get_submodule("b").register_forward_pre_hook(forget)
        assert error_of(model(x), expected) > WRONG
