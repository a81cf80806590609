"""Toys: recurrent layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.channels.toys import GATE, WRONG, Masked, Toy, check_toy, eliminate, error_of
from tests.networks import Function, double, image

HIDDEN = 6
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DEAD = (1, 4)
"""Hidden units without weights and biases."""


def unit_rows(kind: str, units: tuple[int, ...] = DEAD) -> list[int]:
    """Return the rows of hidden units in every gate."""
    return [gate * HIDDEN + unit for gate in range(GATES[kind]) for unit in units]


def network(kind: str, **options: int | bool) -> Callable[[], dict[str, nn.Module]]:
    """Return what builds a linear layer, a recurrent one and a linear one."""
    width = int(options.get("proj_size", 0)) or HIDDEN
    directions = 1 + bool(options.get("bidirectional"))

    def build() -> dict[str, nn.Module]:
        recurrent = getattr(nn, kind)(4, HIDDEN, batch_first=True, **options)
        return {"a": nn.Linear(3, 4), "r": recurrent, "b": nn.Linear(directions * width, 2)}

    return build


def forward(m: nn.Module, x: torch.Tensor) -> object:
    """Return a linear function of every step's output."""
    return m.get_submodule("b")(m.get_submodule("r")(m.get_submodule("a")(x).relu())[0])


def with_state(m: nn.Module, x: torch.Tensor, h0: torch.Tensor, *c0: torch.Tensor) -> object:
    """Start from a state that is an input, and return the last one."""
    y, state = m.get_submodule("r")(m.get_submodule("a")(x), (h0, *c0) if c0 else h0)
    return m.get_submodule("b")(y), state


def dead_units(kind: str, *suffixes: str) -> Masked:
    """Return rows and zeros that leave nothing of the dead units."""
    rows = unit_rows(kind)
    return {
        "rows": {f"r.weight_{part}_{suffix}": rows for part in ("ih", "hh") for suffix in suffixes},
        "zeros": {f"r.bias_{part}_{suffix}": rows for part in ("ih", "hh") for suffix in suffixes},
    }


SHAPE = ((2, 5, 3),)
TOYS: dict[str, Toy] = {
    **{
        f"53 {kind}, {name}": Toy(forward, network(kind, **options), SHAPE, **dead_units(kind, *suffixes))
        for kind in GATES
        for name, options, suffixes in (
            ("dead units", {}, ("l0",)),
            ("two layers", {"num_layers": 2}, ("l0", "l1")),
            ("two directions", {"bidirectional": True}, ("l0", "l0_reverse")),
            ("two layers, two directions", {"num_layers": 2, "bidirectional": True}, ("l0", "l1_reverse")),
            ("no bias", {"bias": False}, ()),
        )
    },
    "53 LSTM, projection": Toy(forward, network("LSTM", proj_size=3), SHAPE, **dead_units("LSTM", "l0")),
    "53 RNN with relu": Toy(
        lambda m, x: m.b(m.r(m.a(x))[0]),
        lambda: {"a": nn.Linear(3, 4), "r": nn.RNN(4, HIDDEN, nonlinearity="relu"), "b": nn.Linear(HIDDEN, 2)},
        SHAPE,
        **dead_units("RNN", "l0"),
    ),
    **{
        f"53 {kind}, state given": Toy(
            with_state,
            network(kind),
            ((2, 5, 3), *((1, 2, HIDDEN),) * (2 if kind == "LSTM" else 1)),
            **dead_units(kind, "l0"),
        )
        for kind in GATES
    },
    **{
        f"53 {kind}, dead input": Toy(forward, network(kind), SHAPE, rows={"a": [0, 2]}, columns={"b": [3]})
        for kind in GATES
    },
    **{
        f"53 {kind}, biases of dead units stay": Toy(
            forward, network(kind), SHAPE, rows={f"r.weight_{part}_l0": unit_rows(kind) for part in ("ih", "hh")}
        )
        for kind in GATES
    },
}
"""Number in channels.md, section 15, with a name; and the toy."""


@pytest.mark.parametrize("name", TOYS)
def test_toy(name: str) -> None:
    check_toy(TOYS[name])


def test_unit_with_a_bias_folded_though_the_state_starts_at_zero_is_wrong() -> None:
    model, x = double(Function(forward, **network("RNN")())), image(*SHAPE[0])
    for part in ("ih", "hh"):
        model.get_parameter(f"r.weight_{part}_l0").data[list(DEAD)] = 0
    model.get_parameter("r.weight_hh_l0").data.mul_(2)
    *_, error = eliminate(model, {}, (x,))
    assert error <= GATE
    bias = model.get_parameter("r.bias_ih_l0") + model.get_parameter("r.bias_hh_l0")
    with torch.no_grad():
        expected = model(x)
        constants = bias[list(DEAD)].tanh()
        weight = model.get_parameter("r.weight_hh_l0")
        others = [unit for unit in range(HIDDEN) if unit not in DEAD]
        model.get_parameter("r.bias_hh_l0")[others] += (weight[:, list(DEAD)] @ constants)[others]
        weight[:, list(DEAD)] = 0
        assert error_of(model(x), expected) > WRONG
