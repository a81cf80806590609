"""Recurrent layers: which units and inputs go, which stay and why; wrong rules as twins."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

from fxprune.nodes import get_tensor
from tests.channels.toys import GATE, WRONG, eliminate, error_of
from tests.networks import Function, double, find_call, image

_aten = torch.ops.aten
Maker = Callable[..., nn.Module]
CALLS: dict[Maker, object] = {
    nn.LSTM: _aten.lstm.input,
    nn.GRU: _aten.gru.input,
    nn.RNN: _aten.rnn_tanh.input,
}
NAMES = ["LSTM", "GRU", "RNN"]
CANDIDATE = {nn.LSTM: 2, nn.GRU: 2, nn.RNN: 0}


def silence(model: nn.Module, units: list[int], cell: str = "l0", name: str = "rnn") -> None:
    """Zero the rows of the gate that makes new content, and their biases."""
    rnn = model.get_submodule(name)
    assert isinstance(rnn, nn.RNNBase)
    rows = [CANDIDATE[type(rnn)] * rnn.hidden_size + unit for unit in units]
    with torch.no_grad():
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            if hasattr(rnn, f"{kind}_{cell}"):
                getattr(rnn, f"{kind}_{cell}")[rows] = 0


def ignore(model: nn.Module, units: list[int], cell: str = "l0", name: str = "rnn") -> None:
    """Zero the columns with which a layer reads its own units."""
    with torch.no_grad():
        model.get_submodule(name).get_parameter(f"weight_hh_{cell}")[:, units] = 0


def shapes_of(gm: fx.GraphModule, target: object) -> list[tuple[int, ...]]:
    """Return the shapes of all parameters of the recurrent calls, in order."""
    calls = [node for node in gm.graph.nodes if node.target is target]
    return [tuple(get_tensor(gm, source).shape) for call in calls for source in call.args[2]]


def sequence(module: Callable[[], nn.Module], width: int) -> nn.Module:
    """Return the usual use: the recurrent layer, then a linear one on every step."""
    return double(Function(lambda m, x: m.fc(m.rnn(x)[0]), rnn=module(), fc=nn.Linear(width, 3)))


@pytest.mark.parametrize("kind", list(CALLS), ids=NAMES)
@pytest.mark.parametrize("layers", [1, 2])
def test_silent_units_leave_every_gate_and_the_next_layer(kind: Maker, layers: int) -> None:
    model = sequence(lambda: kind(5, 6, layers, batch_first=True), 6)
    for layer in range(layers):
        silence(model, [1, 4], f"l{layer}")
    gm, _, error = eliminate(model, {}, (image(2, 7, 5),))
    assert error <= GATE
    gates = dict(zip(CALLS, (4, 3, 1), strict=True))[kind]
    first = [(4 * gates, 5), (4 * gates, 4), (4 * gates,), (4 * gates,)]
    later = [(4 * gates, 4), *first[1:]]
    assert shapes_of(gm, CALLS[kind]) == first + later * (layers - 1)
    assert tuple(get_tensor(gm, find_call(gm, _aten.linear.default).args[1]).shape) == (3, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", list(CALLS), ids=NAMES)
def test_layers_with_different_counts_become_calls_of_their_own(kind: Maker) -> None:
    model = sequence(lambda: kind(5, 6, 3), 6)
    silence(model, [0], "l0")
    silence(model, [0, 3, 5], "l1")
    silence(model, [2, 3, 4], "l2")
    gm, _, error = eliminate(model, {}, (image(7, 2, 5),))
    assert error <= GATE
    calls = [node for node in gm.graph.nodes if node.target is CALLS[kind]]
    assert len(calls) == 2
    assert [shape[1] for shape in shapes_of(gm, CALLS[kind]) if len(shape) == 2] == [5, 5, 5, 3, 3, 3]


@pytest.mark.parametrize("kind", list(CALLS), ids=NAMES)
def test_bidirectional_directions_keep_equally_many(kind: Maker) -> None:
    model = sequence(lambda: kind(5, 6, 2, bidirectional=True, batch_first=True), 12)
    silence(model, [0, 1], "l0")
    silence(model, [3, 4, 5], "l0_reverse")
    silence(model, [2], "l1")
    silence(model, [2], "l1_reverse")
    gm, record, error = eliminate(model, {}, (image(2, 7, 5),))
    assert error <= GATE
    widths = [shape[1] for shape in shapes_of(gm, CALLS[kind]) if len(shape) == 2]
    assert widths == [5, 4, 5, 4, 8, 5, 8, 5]
    assert any("equally many in both directions" in refusal.reason for refusal in record.refusals)


@pytest.mark.parametrize("kind", list(CALLS), ids=NAMES)
def test_units_that_nobody_reads_go(kind: Maker) -> None:
    model = sequence(lambda: kind(5, 6), 6)
    ignore(model, [0, 2])
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[:, [0, 2]] = False
    gm, _, error = eliminate(model, {"fc.weight": mask}, (image(7, 2, 5),))
    assert error <= GATE
    assert shapes_of(gm, CALLS[kind])[1][1] == 4


def test_a_unit_read_by_a_live_unit_stays() -> None:
    model = sequence(lambda: nn.GRU(5, 6), 6)
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[:, [0, 2]] = False
    gm, _, error = eliminate(model, {"fc.weight": mask}, (image(7, 2, 5),))
    assert error <= GATE
    assert shapes_of(gm, _aten.gru.input)[1][1] == 6


@pytest.mark.parametrize("bias", [True, False])
def test_projection_cuts_units_and_outputs(bias: bool) -> None:
    model = sequence(lambda: nn.LSTM(5, 6, 2, bias=bias, proj_size=4), 4)
    rnn = model.get_submodule("rnn")
    silence(model, [1, 2], "l0")
    with torch.no_grad():
        rnn.get_parameter("weight_hr_l0")[3] = 0  # an output that is 0
        rnn.get_parameter("weight_hr_l1")[:, 5] = 0  # a unit that no output reads
    gm, _, error = eliminate(model, {}, (image(7, 2, 5),))
    assert error <= GATE
    projections = [shape for shape in shapes_of(gm, _aten.lstm.input) if shape[0] <= 4]
    assert projections == [(3, 4), (4, 5)]


@pytest.mark.parametrize("kind", list(CALLS), ids=NAMES)
def test_last_states_keep_their_numbering(kind: Maker) -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> object:
        sequence, state = m.get_submodule("rnn")(x)
        return (sequence, *state) if isinstance(state, tuple) else (sequence, state)

    model = double(Function(forward, rnn=kind(5, 6, 2)))
    silence(model, [1, 3], "l0")
    silence(model, [0], "l1")
    gm, _, error = eliminate(model, {}, (image(7, 2, 5),))
    assert error <= GATE
    assert {shape[1] for shape in shapes_of(gm, CALLS[kind])[1:2]} == {4}


def test_the_state_of_the_last_layer_alone_loses_its_units() -> None:
    model = double(Function(lambda m, x: m.fc(m.rnn(x)[1][0][-1]), rnn=nn.LSTM(5, 6, 2), fc=nn.Linear(6, 3)))
    silence(model, [1, 3], "l0")
    silence(model, [0], "l1")
    gm, _, error = eliminate(model, {}, (image(7, 2, 5),))
    assert error <= GATE
    assert tuple(get_tensor(gm, find_call(gm, _aten.linear.default).args[1]).shape) == (3, 5)  # type: ignore[arg-type]


def test_states_from_outside_keep_their_units() -> None:
    """A unit without new content still carries what it starts with."""
    model = double(Function(lambda m, x, h, c: m.fc(m.rnn(x, (h, c))[0]), rnn=nn.LSTM(5, 6), fc=nn.Linear(6, 3)))
    silence(model, [1, 3])
    ignore(model, [2])
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[:, 2] = False
    inputs = (image(7, 2, 5), image(1, 2, 6), image(1, 2, 6))
    gm, _, error = eliminate(model, {"fc.weight": mask}, inputs)
    assert error <= GATE
    assert shapes_of(gm, _aten.lstm.input)[1][1] == 5
    zeros = torch.zeros(1, 2, 6, dtype=torch.float64)
    with torch.no_grad():
        wrong = model(inputs[0], inputs[1].index_fill(2, torch.tensor([1, 3]), 0), inputs[2] + zeros)
        assert error_of(wrong, model(*inputs)) > WRONG


@pytest.mark.parametrize("kind", list(CALLS), ids=NAMES)
def test_inputs_that_are_constant_or_unread_go(kind: Maker) -> None:
    model = double(Function(lambda m, x: m.rnn(m.fc(x))[0], rnn=kind(5, 6), fc=nn.Linear(4, 5)))
    with torch.no_grad():
        model.get_submodule("rnn").get_parameter("weight_ih_l0")[:, 3] = 0
    mask = torch.ones(5, 4, dtype=torch.bool)
    mask[[0, 2]] = False  # rows that leave their bias
    gm, record, error = eliminate(model, {"fc.weight": mask}, (image(7, 2, 4),))
    assert error <= GATE
    assert shapes_of(gm, CALLS[kind])[0][1] == 2
    assert record.macs_after == record.macs_before * 2 // 5
    wrong = image(7, 2, 4)
    with torch.no_grad():
        expected = model(wrong)
        model.get_parameter("fc.bias")[[0, 2]] = 0  # as if the constants were dropped
        assert error_of(model(wrong), expected) > WRONG


def test_constants_make_biases_where_there_are_none() -> None:
    model = double(Function(lambda m, x: m.rnn(m.fc(x))[0], rnn=nn.GRU(5, 6, bias=False), fc=nn.Linear(4, 5)))
    mask = torch.ones(5, 4, dtype=torch.bool)
    mask[[0, 2]] = False
    gm, _, error = eliminate(model, {"fc.weight": mask}, (image(7, 2, 4),))
    assert error <= GATE
    assert len(shapes_of(gm, _aten.gru.input)) == 4


def test_a_plain_unit_with_a_bias_stays_for_its_first_step() -> None:
    model = sequence(lambda: nn.RNN(5, 6), 6)
    rnn = model.get_submodule("rnn")
    with torch.no_grad():
        rnn.get_parameter("weight_ih_l0")[2] = 0
        rnn.get_parameter("weight_hh_l0")[2] = 0
    x = image(7, 2, 5)
    gm, record, error = eliminate(model, {}, (x,))
    assert error <= GATE
    assert shapes_of(gm, _aten.rnn_tanh.input)[1] == (6, 6)
    assert any("first step reads" in refusal.reason for refusal in record.refusals)
    with torch.no_grad():
        expected = model(x)
        value = torch.tanh(rnn.get_parameter("bias_ih_l0")[2] + rnn.get_parameter("bias_hh_l0")[2])
        rnn.get_parameter("bias_hh_l0").add_(rnn.get_parameter("weight_hh_l0")[:, 2] * value)
        rnn.get_parameter("weight_hh_l0")[:, 2] = 0
        assert error_of(model(x), expected) > WRONG


@pytest.mark.parametrize("function", ["tanh", "relu"])
def test_a_plain_unit_with_a_bias_that_its_layer_ignores_goes_as_a_constant(function: str) -> None:
    model = sequence(lambda: nn.RNN(5, 6, 2, nonlinearity=function), 6)
    rnn = model.get_submodule("rnn")
    with torch.no_grad():
        for cell in ("l0", "l1"):
            rnn.get_parameter(f"weight_ih_{cell}")[2] = 0
            rnn.get_parameter(f"weight_hh_{cell}")[2] = 0
            rnn.get_parameter(f"bias_hh_{cell}")[2] = 1
            ignore(model, [2], cell)
    gm, _, error = eliminate(model, {}, (image(7, 2, 5),))
    assert error <= GATE
    target = _aten.rnn_tanh.input if function == "tanh" else _aten.rnn_relu.input
    assert [shape[1] for shape in shapes_of(gm, target) if len(shape) == 2] == [5, 5, 5, 5]


def test_masks_name_recurrent_weights() -> None:
    model = sequence(lambda: nn.RNN(5, 6, bias=False), 6)
    rows = torch.ones(6, 1, dtype=torch.bool)
    rows[[1, 2]] = False
    masks = {"rnn.weight_ih_l0": rows.expand(6, 5).clone(), "rnn.weight_hh_l0": rows.expand(6, 6).clone()}
    gm, _, error = eliminate(model, masks, (image(7, 2, 5),))
    assert error <= GATE
    assert shapes_of(gm, _aten.rnn_tanh.input)[1] == (4, 4)


def test_a_dead_layer_keeps_a_unit_and_the_output() -> None:
    model = sequence(lambda: nn.GRU(5, 6, 2), 6)
    silence(model, list(range(6)), "l1")
    gm, _, error = eliminate(model, {}, (image(7, 2, 5),))
    assert error <= GATE
    assert not [node for node in gm.graph.nodes if node.target is _aten.gru.input]


def test_a_weight_that_is_not_finite_leaves_everything() -> None:
    model = double(Function(lambda m, x: m.rnn(x)[0].nan_to_num(0.0), rnn=nn.GRU(5, 6)))
    silence(model, [1])
    with torch.no_grad():
        model.get_submodule("rnn").get_parameter("weight_ih_l0")[0, 0] = torch.inf
    gm, _, error = eliminate(model, {}, (image(7, 2, 5),))
    assert error <= GATE
    assert shapes_of(gm, _aten.gru.input)[1] == (18, 6)
