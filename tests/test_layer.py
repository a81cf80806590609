"""One view of every layer, whatever operator it is written as."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from fxprune.graph import capture
from fxprune.layer import Layer, find_layer, module_path
from fxprune.operators import fused_convolution
from tests.networks import Function, build, image, layers


def only_layer(model: nn.Module, *inputs: torch.Tensor) -> Layer:
    """Capture a model with one layer and return its view."""
    (layer,) = layers(build(model.double().eval(), *inputs))
    return layer


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution(dims: int, groups: int) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    layer = only_layer(kind(4, 6, 3, stride=2, padding=1, groups=groups), image(2, 4, *[7] * dims))
    assert (layer.kind, layer.dims, layer.groups) == ("conv", dims, groups)
    assert layer.stride == (2,) * dims
    assert layer.padding == ((1, 1),) * dims
    assert layer.dilation == (1,) * dims
    assert layer.weight_shape == (6, 4 // groups, *[3] * dims)
    assert layer.out_channels == 6
    assert layer.positions == 2 * 4**dims
    assert layer.macs == layer.positions * 6 * (4 // groups) * 3**dims


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_transposed_convolution(dims: int) -> None:
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    layer = only_layer(kind(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), image(2, 4, *[5] * dims))
    assert (layer.kind, layer.dims, layer.groups) == ("conv_transpose", dims, 2)
    assert layer.output_padding == (1,) * dims
    assert layer.out_channels == 6
    assert layer.positions == 2 * 5**dims


def test_linear() -> None:
    layer = only_layer(nn.Linear(4, 6), image(2, 3, 4))
    assert (layer.kind, layer.dims, layer.groups, layer.stride, layer.padding) == ("linear", 0, 1, (), ())
    assert layer.positions == 6
    assert layer.macs == 6 * 24
    assert layer.bias is not None


@pytest.mark.parametrize(
    ("kernel", "dilation", "padding"),
    [(3, 1, ((1, 1), (1, 1))), ((4, 3), 1, ((1, 2), (1, 1))), ((4, 2), 3, ((4, 5), (1, 2)))],
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_same_padding_is_resolved(
    kernel: int | tuple[int, int], dilation: int, padding: tuple[tuple[int, int], ...]
) -> None:
    convolution = nn.Conv2d(2, 3, kernel, dilation=dilation, padding="same").double().eval()
    x = image(1, 2, 13, 13)
    layer = only_layer(convolution, x)
    assert layer.padding == padding
    pads = [size for pair in reversed(padding) for size in pair]
    expected = F.conv2d(F.pad(x, pads), convolution.weight, convolution.bias, dilation=dilation)
    torch.testing.assert_close(convolution(x), expected)


def test_valid_padding_is_none() -> None:
    assert only_layer(nn.Conv1d(2, 3, 3, padding="valid"), image(1, 2, 9)).padding == ((0, 0),)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_padding_modes_pad_before_the_layer(mode: Literal["reflect", "replicate", "circular"]) -> None:
    layer = only_layer(nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode), image(1, 2, 6, 6))
    assert layer.padding == ((0, 0), (0, 0))
    assert layer.input.target is torch.ops.aten.pad.default


@pytest.mark.parametrize(
    ("model", "shape", "kind"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), (1, 3, 5, 5), "conv"),
        (nn.ConvTranspose2d(3, 4, 3), (1, 3, 5, 5), "conv_transpose"),
        (nn.Linear(3, 4), (2, 3), "linear"),
        (nn.Linear(3, 4, bias=False), (2, 3), "linear"),
        (nn.Linear(3, 4), (2, 5, 3), "linear"),
    ],
)
def test_core_aten_programs_show_the_same_layers(model: nn.Module, shape: tuple[int, ...], kind: str) -> None:
    x = image(*shape)
    program = torch.export.export(model.double().eval(), (x,)).run_decompositions()
    (layer,) = layers(capture(program, (x,), {}).graph_module)
    assert layer.kind == kind
    assert layer.weight.target == "weight"
    assert layer.weight_shape == tuple(model.get_parameter("weight").shape)


def test_fused_operator_shows_its_epilogue() -> None:
    gm = build(nn.Conv2d(2, 3, 3).double().eval(), image(1, 2, 6, 6))
    plain = layers(gm)[0]
    args = (plain.input, plain.weight, plain.bias, None, (1, 1), ((0, 1), (2, 3)), (1, 1), 1, "hardtanh", (0.0, 6.0))
    with gm.graph.inserting_after(plain.node):
        node = gm.graph.call_function(fused_convolution, args)
    layer = find_layer(node)
    assert layer is not None
    assert layer.padding == ((0, 1), (2, 3))
    assert (layer.activation, layer.activation_args, layer.residual) == ("hardtanh", (0.0, 6.0), None)


@pytest.mark.parametrize(
    "function",
    [
        lambda _m, x: F.linear(x, x),  # the weight depends on the input
        lambda m, x: F.linear(x, m.fc.weight, x[0]),  # so does the bias
        lambda m, x: F.linear(x, m.fc.weight[0]),  # the weight has one axis
        lambda _m, x: x.relu(),
    ],
)
def test_other_nodes_are_no_layers(function: Callable[..., object]) -> None:
    gm = build(Function(function, fc=nn.Linear(3, 3)).double().eval(), image(3, 3))
    assert layers(gm) == []


def test_module_path_names_the_module() -> None:
    layer = only_layer(nn.Sequential(nn.Sequential(nn.Linear(3, 3))), image(1, 3))
    assert module_path(layer.node) == "0.0"


def test_inputs_and_constants_are_no_layers() -> None:
    graph = fx.Graph()
    assert find_layer(graph.placeholder("x")) is None
