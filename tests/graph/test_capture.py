"""Capture: any kind of model in, one functional graph with named constants out, the model untouched."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.export import Dim, export
from torch.utils._pytree import tree_unflatten

from fxprune.errors import UnsupportedError
from fxprune.graph import capture
from fxprune.nodes import find_tensor
from fxprune.printer import format_graph
from fxprune.verify import verify
from tests.networks import Function, difference, double, image, layers, reference, run, targets


def small() -> nn.Module:
    """Two convolutions with normalisation, an in-place activation and a classifier."""
    return double(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 5)
        )
    )


SHAPE = (2, 3, 6, 6)


def as_module(model: nn.Module, _: torch.Tensor) -> nn.Module:
    return model


def as_traced(model: nn.Module, _: torch.Tensor) -> fx.GraphModule:
    return fx.symbolic_trace(model)


def as_unlifted(model: nn.Module, x: torch.Tensor) -> fx.GraphModule:
    module = export(model, (x,)).module()
    assert isinstance(module, fx.GraphModule)
    return module


@pytest.mark.parametrize("form", [as_module, as_traced, as_unlifted])
def test_modules_and_graph_modules_give_the_same_graph(form: Callable[[nn.Module, torch.Tensor], nn.Module]) -> None:
    model, x = small(), image(*SHAPE)
    captured = capture(form(model, x), (x,), {})
    verify(captured.graph_module)
    assert [layer.weight.target for layer in layers(captured.graph_module)] == ["0.weight", "4.weight"]
    assert difference(run(captured.graph_module, x)[0], reference(model, x)) == 0


@pytest.mark.parametrize("decompose", [False, True])
def test_exported_program(decompose: bool) -> None:
    model, x = small(), image(*SHAPE)
    program = export(model, (x,))
    gm = capture(program.run_decompositions() if decompose else program, (x,), {}).graph_module
    assert difference(run(gm, x)[0], reference(model, x)) < 1e-12


def test_dynamic_program_becomes_static() -> None:
    model = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(0, 1), nn.Flatten()))
    program = export(model, (image(*SHAPE),), dynamic_shapes=({0: Dim("batch")},))
    x = image(5, 3, 6, 6)
    gm = capture(program, (x,), {}).graph_module
    assert "sym_size" not in format_graph(gm)
    assert torch.equal(run(gm, x)[0], reference(model, x))


def test_operators_are_functional_and_dropout_is_gone() -> None:
    model = double(nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.ReLU(inplace=True), nn.Hardswish(inplace=True)))
    gm = capture(model, (image(2, 3),), {}).graph_module
    aten = torch.ops.aten
    assert targets(gm) == [aten.linear.default, aten.relu.default, aten.hardswish.default]


def test_module_is_not_changed() -> None:
    model, x = small(), image(*SHAPE)
    state, names = copy.deepcopy(model.state_dict()), [name for name, _ in model.named_modules()]
    capture(model, (x,), {})
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [name for name, _ in model.named_modules()] == names
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_graph_module_is_not_changed() -> None:
    x = image(*SHAPE)
    traced = fx.symbolic_trace(small())
    before = str(traced.graph), traced.code
    capture(traced, (x,), {})
    assert (str(traced.graph), traced.code) == before


def test_constants_need_no_gradient_and_share_storage() -> None:
    model = small()
    gm = capture(model, (image(*SHAPE),), {}).graph_module
    weight = find_tensor(gm, "0.weight")
    assert weight is not None
    assert not weight.requires_grad
    assert weight.data_ptr() == model.get_parameter("0.weight").data_ptr()


def test_nested_inputs_and_outputs_are_flat_and_come_back() -> None:
    def forward(m: nn.Module, pair: tuple[torch.Tensor, torch.Tensor], *, scale: float, other: None = None) -> object:
        return {"y": [m.get_submodule("fc")(pair[0]) * scale, other, 3], "x": pair[1]}

    model, x = double(Function(forward, fc=nn.Linear(3, 3))), image(2, 3)
    kwargs: dict[str, object] = {"scale": 2.0, "other": None}
    captured = capture(model, ((x, x + 1),), kwargs)
    placeholders = [node for node in captured.graph_module.graph.nodes if node.op == "placeholder"]
    assert len(placeholders) == captured.in_spec.num_leaves == 4
    found = tree_unflatten(captured.graph_module(x, x + 1, 2.0, None), captured.out_spec)
    expected = model((x, x + 1), **kwargs)
    assert torch.equal(found["y"][0], expected["y"][0])
    assert found["y"][1:] == [None, 3]
    assert torch.equal(found["x"], x + 1)


def test_shapes_are_known() -> None:
    gm = capture(small(), (image(*SHAPE),), {}).graph_module
    assert layers(gm)[0].output_shape == (2, 4, 4, 4)


def test_attention_keeps_its_layers() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double().eval().requires_grad_(False)
    gm = capture(model, (image(2, 3, 8),), {}).graph_module
    assert len(layers(gm)) == 4
    assert torch.backends.mha.get_fastpath_enabled()


def test_recurrent_module_stays_one_node() -> None:
    gm = capture(nn.LSTM(3, 4).double().eval(), (image(5, 2, 3),), {}).graph_module
    assert torch.ops.aten.lstm.input in targets(gm)


def test_grad_mode_and_detach_leave_nothing_behind() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> object:
        with torch.enable_grad():
            y = m.get_submodule("fc")(x)
        with torch.no_grad():
            return m.get_submodule("fc")(y.detach())

    gm = capture(double(Function(forward, fc=nn.Linear(3, 3))), (image(2, 3),), {}).graph_module
    assert targets(gm) == [torch.ops.aten.linear.default] * 2


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.AdaptiveAvgPool1d(6), (2, 3, 6)),
        (nn.AdaptiveAvgPool2d((6, 5)), (2, 3, 6, 5)),
        (nn.AdaptiveAvgPool3d(2), (2, 3, 2, 2, 2)),
    ],
    ids=["1d", "2d", "3d"],
)
def test_a_mean_of_single_cells_leaves_nothing_behind(pool: nn.Module, shape: tuple[int, ...], decompose: bool) -> None:
    model, x = nn.Sequential(nn.ReLU(), pool).eval(), image(*shape)
    program = export(model, (x,))
    gm = capture(program.run_decompositions() if decompose else program, (x,), {}).graph_module
    assert not [target for target in targets(gm) if "pool" in str(target)]
    assert torch.equal(run(gm, x)[0], model(x))


def test_a_mean_of_several_cells_stays() -> None:
    gm = capture(nn.AdaptiveAvgPool2d((3, 5)).eval(), (image(2, 3, 6, 5),), {}).graph_module
    assert len(targets(gm)) == 1


def test_input_written_in_place_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    model, x = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3)).double().eval(), image(2, 3)
    with caplog.at_level(logging.WARNING, logger="fxprune"):
        gm = capture(model, (x,), {}).graph_module
    assert "writes into its input" in caplog.text
    before = x.clone()
    run(gm, x)
    assert torch.equal(x, before)


def test_model_that_changes_a_buffer_is_refused() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> object:
        norm = m.get_submodule("norm")
        assert isinstance(norm.running_mean, torch.Tensor)
        norm.running_mean.add_(1)
        return norm(x)

    with pytest.raises(UnsupportedError, match=r"changes 'norm.running_mean'"):
        capture(double(Function(forward, norm=nn.BatchNorm2d(3))), (image(*SHAPE),), {})


def test_control_flow_is_refused() -> None:
    def forward(_: nn.Module, x: torch.Tensor) -> object:
        return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))

    with pytest.raises(UnsupportedError, match="control flow"):
        capture(Function(forward).eval(), (image(2, 3),), {})


def test_data_dependent_python_is_refused_with_a_hint() -> None:
    def forward(_: nn.Module, x: torch.Tensor) -> object:
        return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedError, match="take data-dependent Python out of forward"):
        capture(Function(forward).eval(), (image(2, 3),), {})


def test_wrong_input_shape_is_refused_in_one_line() -> None:
    with pytest.raises(UnsupportedError, match="cannot capture Linear") as caught:
        capture(nn.Linear(3, 4).eval(), (torch.randn(2, 5),), {})
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_same_padding_with_an_even_kernel_and_functional_forms() -> None:
    model = double(
        Function(
            lambda m, x: F.silu(m.a(x)) + torch.relu(m.b(x)),
            a=nn.Conv2d(3, 3, (2, 3), padding="same"),
            b=nn.Conv2d(3, 3, 2, padding="same", padding_mode="reflect"),
        )
    )
    x = image(*SHAPE)
    assert torch.equal(run(capture(model, (x,), {}).graph_module, x)[0], reference(model, x))
