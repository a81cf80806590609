"""Toys: inputs and outputs, everything dead, shared tensors, constants, rounding, a second compilation."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fxprune.graph import annotate, capture
from fxprune.passes import EliminateChannels, FoldBatchNorm, run_passes
from tests.channels.toys import GATE, Toy, check_toy, eliminate, error_of, kept_shapes
from tests.networks import Function, double, image


def conv(inputs: int, outputs: int, size: int = 1, *, padding: int = 0, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=padding, groups=groups)


TOYS: dict[str, Toy] = {
    "49 all channels dead": Toy(
        lambda m, x: m.c(m.b(m.a(x).sigmoid()).relu()),
        lambda: {"a": conv(3, 4, 3), "b": conv(4, 5, 3, padding=1), "c": conv(5, 2)},
        rows={"a": [0, 1, 2, 3]},
        kept={"a": None},
    ),
    "49 all channels of a branch dead": Toy(
        lambda m, x: m.c(m.a(x) + m.b(m.d(x).relu())),
        lambda: {"a": conv(3, 4), "d": conv(3, 6), "b": conv(6, 4), "c": conv(4, 2)},
        rows={"b": [0, 1, 2, 3]},
        kept={"b": None, "d": None, "a": (4, 3)},
    ),
    "49 the only layer dead": Toy(lambda m, x: m.a(x), lambda: {"a": conv(3, 4)}, rows={"a": [0, 1, 2, 3]}),
    "50 dead channel at the output": Toy(
        lambda m, x: m.a(x).sigmoid(), lambda: {"a": conv(3, 5)}, rows={"a": [1, 4]}, kept={"a": (3, 3)}
    ),
    "50 dead channel at two outputs": Toy(
        lambda m, x: (y := m.a(x).relu(), m.b(y)), lambda: {"a": conv(3, 5), "b": conv(5, 2)}, rows={"a": [1, 4]}
    ),
    "51 input sliced": Toy(
        lambda m, x: m.b(m.a(x[:, 1:])),
        lambda: {"a": conv(5, 4), "b": conv(4, 2)},
        shapes=((2, 6, 5, 5),),
        rows={"a": [0]},
        columns={"a": [1, 3]},
        kept={"a": (3, 3), "b": (2, 3)},
    ),
    "51 unused channels of the input": Toy(
        lambda m, x: m.b(m.a(x).relu()),
        lambda: {"a": conv(6, 4), "b": conv(4, 2)},
        shapes=((2, 6, 5, 5),),
        columns={"a": [0, 2, 5]},
        kept={"a": (4, 3)},
    ),
    "52 several inputs": Toy(
        lambda m, x, y: m.c(torch.cat([m.a(x), m.b(y)], 1)),
        lambda: {"a": conv(3, 4), "b": conv(2, 4), "c": conv(8, 2)},
        shapes=((2, 3, 5, 5), (2, 2, 5, 5)),
        rows={"a": [0], "b": [1, 2]},
        kept={"a": (3, 3), "b": (2, 2), "c": (2, 5)},
    ),
    "52 list of outputs": Toy(
        lambda m, x: [m.b(y := m.a(x)), m.c(y), y],
        lambda: {"a": conv(3, 4), "b": conv(4, 2), "c": conv(4, 3)},
        rows={"a": [0]},
    ),
    "52 dict of outputs": Toy(
        lambda m, x: {"out": m.b(y := m.a(x)), "aux": (m.c(y), x)},
        lambda: {"a": conv(3, 4), "b": conv(4, 2), "c": conv(4, 3)},
        rows={"a": [0]},
        kept={"a": (3, 3)},
    ),
    "55 in-place relu on a shared tensor": Toy(
        lambda m, x: (y := m.a(x)) + m.b(F.relu(y, inplace=True)),
        lambda: {"a": conv(3, 4), "b": conv(4, 4)},
        rows={"a": [0, 1], "b": [1, 2]},
    ),
    "56 weight from a constant subgraph": Toy(
        lambda m, x: F.conv2d(m.a(x).relu(), torch.cat([m.b.weight, m.b.weight.flip(0)], 0), m.b.bias.repeat(2)),
        lambda: {"a": conv(3, 4), "b": conv(4, 3)},
        rows={"a": [0, 1], "b": [1]},
    ),
    **{
        f"58 rounded to 8, padding {padding}": Toy(
            lambda m, x: m.b(m.a(x).sigmoid()),
            lambda padding=padding: {"a": conv(3, 24), "b": conv(24, 2, 3, padding=padding)},  # type: ignore[misc]
            rows={"a": list(range(11))},
            kept={"a": (16, 3), "b": (2, 16)},
            options=EliminateChannels(round_to=8),
        )
        for padding in (0, 1)
    },
}
"""Number in channels.md, section 15, with a name; and the toy."""


@pytest.mark.parametrize("name", TOYS)
def test_toy(name: str) -> None:
    check_toy(TOYS[name])


def test_57_fine_grained_network_shrinks_to_a_fixpoint() -> None:
    sizes = (40, 60, 60, 60, 10)
    names = ("a", "b", "c", "d")
    model = double(
        Function(
            lambda m, x: m.d(m.c(m.b(m.a(x).relu()).relu()).relu()),
            **{name: nn.Linear(sizes[i], sizes[i + 1]) for i, name in enumerate(names)},
        )
    )
    masks = {f"{name}.weight": torch.rand(model.get_parameter(f"{name}.weight").shape) > 0.99 for name in names}
    live = torch.ones(sizes[-1], dtype=torch.bool)
    needed, found = {}, dict.fromkeys(names, torch.empty(0))
    reach = torch.ones(sizes[0], dtype=torch.bool)
    for name in names:  # what the input reaches
        mask = masks[f"{name}.weight"]
        reach = (mask & reach).any(1)
        found[name] = reach
    for name in reversed(names):  # what the output reads of it
        needed[name] = int((found[name] & live).sum()) if name != "d" else None
        live = (masks[f"{name}.weight"] & (found[name] & live if name != "d" else live)[:, None]).any(0)
    gm, record, error = eliminate(model, masks, (image(3, 40),))
    assert error <= GATE
    shapes = kept_shapes(gm)
    assert record.macs_after < 0.05 * record.macs_before
    assert all(shapes[name][0] == needed[name] for name in ("a", "b", "c") if name in shapes), (shapes, needed)


def test_60_compiling_the_result_again_changes_nothing() -> None:
    model = double(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 6, 3, padding=1), nn.BatchNorm2d(6), conv(6, 2)))
    masks = {"0.weight": torch.ones(8, 3, 1, 1, dtype=torch.bool), "2.weight": torch.ones(6, 8, 3, 3, dtype=torch.bool)}
    masks["0.weight"][:3], masks["2.weight"][1:3] = False, False
    x = image(2, 3, 5, 5)
    gm, *_ = eliminate(model, masks, (x,))
    again = capture(gm, (x,), {}).graph_module
    annotate(again, {})
    *_, record = run_passes(again, (FoldBatchNorm(), EliminateChannels()))
    assert not record.modified
    with torch.no_grad():
        assert error_of(again(x)[0], model(x)) <= GATE


def test_users_tensors_stay_as_they_are() -> None:
    model = double(nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 2)))
    mask = torch.ones(8, 3, 1, 1, dtype=torch.bool)
    mask[:3] = False
    x = image(2, 3, 5, 5)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gm = capture(model, (x,), {}, {"0.weight": mask}).graph_module
    annotate(gm, {"0.weight": mask})
    run_passes(gm, (FoldBatchNorm(), EliminateChannels()))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
