"""What is decided by cost: which dead channels fill up to a multiple, and when operands hold their own channels."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from fxprune.channels.record import compose_all
from fxprune.passes import EliminateChannels
from tests.channels.drawn import PLANE, draw_masks, draw_network
from tests.channels.toys import GATE, Toy, eliminate
from tests.networks import Function, double, image


def conv(inputs: int, outputs: int, size: int = 1, *, padding: int = 0) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=padding)


def rows_of(toy: Toy) -> dict[str, tuple[int, ...]]:
    """Return which rows of each weight stay."""
    model, inputs = toy.build(), toy.inputs()
    gm, _, error = eliminate(model, toy.masks(model), inputs, toy.options)
    assert error <= GATE
    return {cut.weight.removesuffix(".weight"): cut.rows for cut in compose_all(gm).values()}


def test_rounding_takes_the_channels_that_had_to_be_scattered_before_others() -> None:
    toy = Toy(
        lambda m, x: m.c(m.a(x) + m.b(x)),
        lambda: {"a": conv(3, 8), "b": conv(3, 8), "c": conv(8, 4)},
        rows={"a": [0, 1, 2], "b": [0]},
        options=EliminateChannels(adds="compact", round_to=2),
    )
    rows = rows_of(toy)
    assert rows["a"] == (1, 3, 4, 5, 6, 7)  # not 0, which the sum does not need
    assert rows["b"] == tuple(range(8))


def test_rounding_takes_the_constants_behind_a_gate_before_others() -> None:
    toy = Toy(
        lambda m, x: m.b(m.a(x).sigmoid() * m.g(x.mean((2, 3), keepdim=True)).sigmoid()),
        lambda: {"a": conv(3, 8), "g": conv(3, 8), "b": conv(8, 2)},
        rows={"a": [0, 1, 4], "g": [0]},
        columns={"b": [0]},
        options=EliminateChannels(adds="compact", round_to=6),
    )
    assert rows_of(toy)["a"] == (1, 2, 3, 5, 6, 7)


def test_rounding_counts_carriers_first() -> None:
    layers = {"a": conv(3, 8), "b": conv(8, 2, 3, padding=1)}
    model, x = double(Function(lambda m, x: m.b(m.a(x)), **layers)), image(2, 3, *PLANE)
    with torch.no_grad():
        model.get_parameter("a.bias")[:3] = torch.tensor([0.1, -0.2, 0.9])
    mask = (torch.arange(8) > 2).view(8, 1, 1, 1).expand(8, 3, 1, 1)
    gm, _, error = eliminate(model, {"a.weight": mask}, (x,), EliminateChannels(round_to=6))
    assert error <= GATE
    cuts = {cut.weight: cut for cut in compose_all(gm).values()}
    assert cuts["a.weight"].rows == (2, 3, 4, 5, 6, 7)
    assert cuts["b.weight"].carriers == (2,)


@pytest.mark.parametrize("blocks", [["chain", "residual", "gate"], ["concat", "split", "views"], ["projected", "pool"]])
def test_rounding_never_removes_a_living_channel(blocks: Sequence[str]) -> None:
    model, x = draw_network(list(blocks), "mean"), image(2, 3, *PLANE)
    masks = draw_masks(model, 0.5)
    found = []
    for round_to in (1, 4):
        gm, _, error = eliminate(model, masks, (x,), EliminateChannels(adds="compact", round_to=round_to))
        assert error <= GATE
        found.append({cut.layer: cut for cut in compose_all(gm).values()})
    for name, cut in found[0].items():
        rounded = found[1][name]
        assert set(cut.rows) <= set(rounded.rows)
        assert len(rounded.rows) % 4 == 0 or len(rounded.rows) == cut.out_channels
