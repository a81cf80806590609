"""Residual additions and activations into the layers before them: the seven checks, one test a guard."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxprune.annotation import META_KEY
from fxprune.errors import PostconditionError, PreconditionError
from fxprune.graph import annotation_of
from fxprune.layer import module_path
from fxprune.operators import ACTIVATIONS, fused_convolution, fused_linear
from fxprune.passes import FuseEpilogue, run_passes
from fxprune.printer import format_graph
from tests.networks import (
    Function,
    apply_masks,
    build,
    difference,
    double,
    image,
    layers,
    random_masks,
    reference,
    run,
    run_twice,
    targets,
)

SHAPE = (2, 4, 6, 6)


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1)


def two(function: Callable[..., object]) -> nn.Module:
    """A network of two convolutions that keep the shape."""
    return double(Function(function, a=conv(), b=conv()))


ACTIVATED: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str, tuple[float, ...]]] = {
    "relu": (F.relu, "relu", ()),
    "relu6": (F.relu6, "hardtanh", (0.0, 6.0)),
    "hardtanh": (F.hardtanh, "hardtanh", (-1.0, 1.0)),
    "hardtanh with bounds": (lambda x: F.hardtanh(x, -0.5, 2), "hardtanh", (-0.5, 2.0)),
    "clamp": (lambda x: x.clamp(-0.1, 0.1), "hardtanh", (-0.1, 0.1)),
    "silu": (F.silu, "silu", ()),
    "hardswish": (F.hardswish, "hardswish", ()),
    "gelu": (F.gelu, "gelu", ()),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), "gelu_tanh", ()),
    "sigmoid": (torch.sigmoid, "sigmoid", ()),
}


def test_every_activation_is_reached() -> None:
    assert {name for _, name, _ in ACTIVATED.values()} == ACTIVATIONS


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", sorted(ACTIVATED))
def test_applies_to_convolutions_and_output_is_equal(name: str, residual: bool) -> None:
    activation, expected, numbers = ACTIVATED[name]
    model = two(lambda m, x: activation(m.a(x) + x if residual else m.a(x)))
    x, masks = image(*SHAPE), random_masks(model)
    gm = build(model, x, masks={"a.weight": masks["a.weight"]})
    first, second = run_twice(gm, FuseEpilogue())
    assert (first.modified, second.modified) == (True, False)
    assert targets(gm) == [fused_convolution]
    (layer,) = layers(gm)
    assert (layer.activation, layer.activation_args, layer.residual is not None) == (expected, numbers, residual)
    assert difference(run(gm, x)[0], reference(apply_masks(model, {"a.weight": masks["a.weight"]}), x)) < 1e-9


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_applies_to_linear(shape: tuple[int, ...]) -> None:
    model, x = double(Function(lambda m, x: F.gelu(x + m.a(x)), a=nn.Linear(4, 4))), image(*shape)
    gm = build(model, x)
    run_passes(gm, (FuseEpilogue(),))
    assert targets(gm) == [fused_linear]
    assert difference(run(gm, x)[0], reference(model, x)) < 1e-9


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 4, 3, padding=1),
        nn.Conv1d(4, 4, 3, padding=1, groups=2, bias=False),
        nn.Conv1d(4, 4, 2, padding="same", dilation=3),
        nn.Conv1d(4, 4, 3, padding=2, dilation=2),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_geometry_is_kept(layer: nn.Module) -> None:
    model, x = double(Function(lambda m, x: (m.a(x) + x).relu(), a=layer)), image(2, 4, 9)
    gm = build(model, x)
    run_passes(gm, (FuseEpilogue(),))
    assert targets(gm) == [fused_convolution]
    assert difference(run(gm, x)[0], reference(model, x)) < 1e-9


def test_strided_convolution_keeps_its_stride() -> None:
    model, x = double(nn.Sequential(nn.Conv2d(4, 6, 3, stride=(2, 1)), nn.ReLU())), image(*SHAPE)
    gm = build(model, x)
    run_passes(gm, (FuseEpilogue(),))
    assert difference(run(gm, x)[0], reference(model, x)) < 1e-9


@pytest.mark.parametrize("order", [False, True])
def test_later_of_two_layers_takes_the_addition(order: bool) -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> object:
        first, second = m.get_submodule("a")(x), m.get_submodule("b")(x)
        return (first + second if order else second + first).relu()

    model, x = two(forward), image(*SHAPE)
    gm = build(model, x)
    (record,) = run_passes(gm, (FuseEpilogue(),))
    early, late = layers(gm)
    assert (module_path(early.node), early.residual) == ("a", None)
    assert (module_path(late.node), late.residual, late.activation) == ("b", early.node, "relu")
    assert record.refusals == ()
    assert difference(run(gm, x)[0], reference(model, x)) < 1e-9


def test_residual_computed_after_the_layer_is_there_in_time() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> object:
        y = m.get_submodule("a")(x)
        return y + F.max_pool2d(x * 2, 3, 1, 1)

    model, x = two(forward), image(*SHAPE)
    gm = build(model, x)
    run_passes(gm, (FuseEpilogue(),))
    assert targets(gm)[-1] is fused_convolution
    assert difference(run(gm, x)[0], reference(model, x)) < 1e-9


def test_chain_of_residual_blocks(golden: Callable[[str, str], None]) -> None:
    model = two(lambda m, x: (m.b(y := m.a(x).relu()) + y).relu())
    gm = build(model, image(*SHAPE))
    run_passes(gm, (FuseEpilogue(),))
    golden("fuse_epilogue", format_graph(gm))


def test_addition_that_another_layer_takes_is_no_refusal() -> None:
    model, x = two(lambda m, x: (y := m.a(x)) + m.b(y)), image(*SHAPE)
    gm = build(model, x)
    (record,) = run_passes(gm, (FuseEpilogue(),))
    assert (record.modified, record.refusals) == (True, ())
    assert difference(run(gm, x)[0], reference(model, x)) < 1e-9


def test_annotation_module_and_value_are_kept() -> None:
    model, x = two(lambda m, x: m.a(x).relu()), image(*SHAPE)
    gm = build(model, x)
    before = annotation_of(layers(gm)[0].node)
    run_passes(gm, (FuseEpilogue(),))
    (layer,) = layers(gm)
    assert annotation_of(layer.node) is before
    assert module_path(layer.node) == "a"
    assert (layer.output_shape, layer.node.meta["val"].dtype) == (SHAPE, torch.float64)


REFUSALS: dict[str, tuple[Callable[..., object], str]] = {
    "activation and another user": (lambda m, x: (y := m.a(x)).relu() * y, "2 users"),
    "addition and another user": (lambda m, x: ((y := m.a(x)) + x) * y, "2 users"),
    "sum with another user": (lambda m, x: (y := m.a(x) + x).relu() * y, "add has 2 users"),
    "number": (lambda m, x: torch.ops.aten.add.Tensor(m.a(x), 3.0), "adds a number"),
    "itself": (lambda m, x: (y := m.a(x)) + y, "adds a number, or the output to itself"),
    "alpha": (lambda m, x: torch.add(m.a(x), x, alpha=2), "alpha = 2"),
    "broadcast": (lambda m, x: m.a(x) + x.mean((2, 3), keepdim=True), "broadcasts or converts"),
    "type": (lambda m, x: m.a(x) + x.float(), "broadcasts or converts"),
}


@pytest.mark.parametrize("name", sorted(REFUSALS))
def test_refuses(name: str) -> None:
    function, message = REFUSALS[name]
    model, x = two(function), image(*SHAPE)
    gm = build(model, x)
    expected = run(gm, x)[0]
    (record,) = run_passes(gm, (FuseEpilogue(),))
    assert len(record.refusals) == 1
    assert message in record.refusals[0].reason
    assert difference(run(gm, x)[0], expected) < 1e-9


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.ConvTranspose2d(4, 4, 3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.Tanh()),
        nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3)),
        Function(lambda m, x: m.a(x).clamp(0.5, -0.5), a=nn.Conv2d(4, 4, 3)),
        Function(lambda m, x: m.a(x).clamp(min=0.5), a=nn.Conv2d(4, 4, 3)),
    ],
)
def test_leaves_the_rest_alone(model: nn.Module) -> None:
    gm = build(double(model), image(*SHAPE))
    before = format_graph(gm)
    (record,) = run_passes(gm, (FuseEpilogue(),))
    assert (record.modified, record.refusals) == (False, ())
    assert format_graph(gm) == before


def test_requires_annotations() -> None:
    gm = build(two(lambda m, x: m.a(x)), image(*SHAPE))
    layers(gm)[0].node.meta.pop(META_KEY)
    with pytest.raises(PreconditionError, match="no annotation; run annotate"):
        run_passes(gm, (FuseEpilogue(),))


def test_ensures_finds_what_is_left() -> None:
    gm = build(two(lambda m, x: m.a(x).relu()), image(*SHAPE))
    with pytest.raises(PostconditionError, match="What follows 'conv2d' could be fused"):
        FuseEpilogue().ensures(gm)
