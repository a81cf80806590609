"""Toys: normalisation over channels, pooling, interpolation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fxprune.graph import annotate, capture
from fxprune.nodes import get_tensor
from fxprune.passes import EliminateChannels, run_passes
from tests.channels.toys import GATE, WRONG, Masked, Toy, check_toy, eliminate, error_of
from tests.networks import Function, double, image, layers


def conv(inputs: int, outputs: int, size: int = 1, *, padding: int = 0, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=padding, groups=groups)


def around(
    layer: nn.Module, kept: Mapping[str, tuple[int, int] | None] | None = None, options: EliminateChannels | None = None
) -> Toy:
    """Return a toy that normalises eight channels, two of them dead."""
    return Toy(
        lambda m, x: m.b(m.n(m.a(x))),
        lambda: {"a": conv(3, 8), "n": layer, "b": conv(8, 2)},
        rows={"a": [0, 5]},
        kept=kept or {},
        options=options or EliminateChannels(),
    )


def tokens(layer: nn.Module, **masked: Unpack[Masked]) -> Toy:
    """Return a toy that normalises the last axis."""
    return Toy(
        lambda m, x: m.b(m.n(m.a(x))),
        lambda: {"a": nn.Linear(5, 8), "n": layer, "b": nn.Linear(8, 2)},
        shapes=((2, 4, 5),),
        **masked,
    )


def plane(function: object, shape: tuple[int, ...] = (2, 3, 8, 6), **kept: tuple[int, int]) -> Toy:
    """Return a toy with a function of planes between two convolutions."""
    assert callable(function)
    return Toy(
        lambda m, x: m.b(function(m.a(x).sigmoid())),
        lambda: {"a": conv(3, 6), "b": conv(6, 2)},
        shapes=(shape,),
        rows={"a": [0, 3]},
        kept=kept,
    )


COMPACT = EliminateChannels(adds="compact")
CUT = {"a": (4, 3), "b": (2, 4)}

TOYS: dict[str, Toy] = {
    **{f"40 group norm, {groups} groups": around(nn.GroupNorm(groups, 8)) for groups in (1, 2, 8)},
    "41 instance norm": around(nn.InstanceNorm2d(8, affine=True)),
    "41 instance norm with statistics": around(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
    "42 layer norm of constants": tokens(nn.LayerNorm(8), rows={"a": [1, 2]}, refusal="layer_norm"),
    "42 rms norm of constants": tokens(nn.RMSNorm(8), rows={"a": [1, 2]}, refusal="norm"),
    "42 layer norm, constants leave": tokens(nn.LayerNorm(8), rows={"a": [1, 2]}, kept={"a": (6, 5)}, options=COMPACT),
    "42 rms norm, constants leave": tokens(nn.RMSNorm(8), rows={"a": [1, 2]}, kept={"a": (6, 5)}, options=COMPACT),
    "42 layer norm, columns leave": tokens(
        nn.LayerNorm(8), rows={"a": [1, 2, 5]}, kept={"a": (5, 5), "b": (2, 7)}, options=COMPACT
    ),
    "42 layer norm, columns leave, zeros": tokens(
        nn.LayerNorm(8),
        rows={"a": [1, 2, 5]},
        zeros={"a.bias": [1, 2, 5]},
        kept={"a": (5, 5), "b": (2, 6)},
        options=COMPACT,
    ),
    "42 layer norm without parameters, columns leave": tokens(
        nn.LayerNorm(8, elementwise_affine=False),
        rows={"a": [1, 2, 5]},
        kept={"a": (5, 5), "b": (2, 7)},
        options=COMPACT,
    ),
    "42 rms norm, columns leave": tokens(
        nn.RMSNorm(8, eps=1e-3), rows={"a": [1, 2, 5]}, kept={"a": (5, 5), "b": (2, 6)}, options=COMPACT
    ),
    "42 rms norm, columns leave, zeros": tokens(
        nn.RMSNorm(8), rows={"a": [1]}, zeros={"a.bias": [1]}, kept={"a": (7, 5), "b": (2, 7)}, options=COMPACT
    ),
    "42 layer norm read by two layers, one without a bias": Toy(
        lambda m, x: (m.b(y := m.n(m.a(x))).relu(), m.c(y)),
        lambda: {
            "a": nn.Linear(5, 8),
            "n": nn.LayerNorm(8),
            "b": nn.Linear(8, 6),
            "c": nn.Linear(8, 3, bias=False),
        },
        shapes=((2, 4, 5),),
        rows={"a": [1, 2, 5], "b": [0]},
        kept={"a": (5, 5), "b": (5, 7), "c": (3, 7)},
        options=COMPACT,
    ),
    "42 layer norm read by something else": Toy(
        lambda m, x: (m.b(y := m.n(m.a(x))), y.relu()),
        lambda: {"a": nn.Linear(5, 8), "n": nn.LayerNorm(8), "b": nn.Linear(8, 2)},
        shapes=((2, 4, 5),),
        rows={"a": [1, 2, 5]},
        kept={"a": (5, 5), "b": (2, 8)},
        options=COMPACT,
    ),
    "42 layer norm, much to gain": Toy(
        lambda m, x: m.b(m.n(m.a(x))),
        lambda: {"a": nn.Linear(64, 64), "n": nn.LayerNorm(64), "b": nn.Linear(64, 256)},
        shapes=((2, 196, 64),),
        rows={"a": list(range(20))},
        kept={"a": (44, 64), "b": (256, 46)},
    ),
    "42 layer norm of constants alone": tokens(
        nn.LayerNorm(8), rows={"a": list(range(8))}, kept={"a": None}, options=COMPACT
    ),
    "40 group norm, constants leave": around(nn.GroupNorm(2, 8), {"a": (6, 3)}, COMPACT),
    "40 group norm, much to gain": Toy(
        lambda m, x: m.b(m.n(m.a(x))),
        lambda: {"a": conv(64, 8, 3), "n": nn.GroupNorm(2, 8), "b": conv(8, 2)},
        shapes=((1, 64, 16, 16),),
        rows={"a": [0, 5]},
        kept={"a": (6, 64)},
    ),
    "42 layer norm with unused outputs": tokens(nn.LayerNorm(8), columns={"b": [0, 3]}),
    "42 layer norm with zero scales": tokens(nn.LayerNorm(8), zeros={"n.weight": [0, 3]}),
    "42 layer norm in the middle of a network": Toy(
        lambda m, x: m.d(m.c(m.n(m.b(m.a(x).relu())) + 1).relu()),
        lambda: {
            "a": nn.Linear(5, 8),
            "b": nn.Linear(8, 6),
            "n": nn.LayerNorm(6),
            "c": nn.Linear(6, 8),
            "d": nn.Linear(8, 2),
        },
        shapes=((2, 4, 5),),
        rows={"a": [0, 1], "c": [2, 3, 4]},
        kept={"a": (6, 5), "b": (6, 6), "c": (5, 6), "d": (2, 5)},
    ),
    "46 average, padded, padding counts": plane(lambda y: F.avg_pool2d(y, 3, 2, padding=1)),
    "46 average, padded, padding does not count": plane(
        lambda y: F.avg_pool2d(y, 3, 2, padding=1, count_include_pad=False), **CUT
    ),
    "46 average, rounded up": plane(lambda y: F.avg_pool2d(y, 3, 2, ceil_mode=True)),
    "46 average, rounded up and padded": plane(
        lambda y: F.avg_pool2d(y, 3, 2, padding=1, ceil_mode=True), (2, 3, 9, 6)
    ),
    "46 average, other divisor": plane(lambda y: F.avg_pool2d(y, 3, 2, divisor_override=5), **CUT),
    "46 average, other divisor, padded": plane(lambda y: F.avg_pool2d(y, 3, 2, padding=1, divisor_override=5)),
    "46 average, adaptive": plane(lambda y: F.adaptive_avg_pool2d(y, (3, 4)), **CUT),
    "47 maximum, padded": plane(lambda y: F.max_pool2d(y, 3, 2, padding=1), **CUT),
    "47 maximum, rounded up": plane(lambda y: F.max_pool2d(y, 3, 2, padding=1, ceil_mode=True), **CUT),
    "48 bilinear": plane(lambda y: F.interpolate(y, scale_factor=1.7, mode="bilinear"), **CUT),
    "48 bilinear, corners aligned": plane(
        lambda y: F.interpolate(y, size=(11, 9), mode="bilinear", align_corners=True), **CUT
    ),
    "48 bicubic": plane(lambda y: F.interpolate(y, scale_factor=2, mode="bicubic"), **CUT),
    "48 nearest": plane(lambda y: F.interpolate(y, scale_factor=2), **CUT),
    "sum over space": plane(lambda y: y.sum((2, 3), keepdim=True), **CUT),
    "softmax over space": plane(lambda y: y.flatten(2).softmax(2).view(y.shape), **CUT),
    "softmax over channels": plane(lambda y: y.softmax(1), a=(6, 3), b=(2, 6)),
}
"""Number in channels.md, section 15, with a name; and the toy."""


@pytest.mark.parametrize("name", TOYS)
def test_toy(name: str) -> None:
    check_toy(TOYS[name])


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_slicing_a_norm_over_channels_is_wrong(norm: type[nn.LayerNorm | nn.RMSNorm]) -> None:
    model = double(nn.Sequential(nn.Linear(5, 8), norm(8)))
    mask = torch.ones(8, 5, dtype=torch.bool)
    mask[:2] = False
    x = image(3, 5)
    *_, error = eliminate(model, {"0.weight": mask}, (x,))
    assert error <= GATE
    with torch.no_grad():
        hidden = model.get_submodule("0")(x)
        sliced = norm(6).double()
        sliced.load_state_dict({name: value[2:] for name, value in model.get_submodule("1").state_dict().items()})
        assert error_of(sliced(hidden[:, 2:]), model(x)[:, 2:]) > WRONG


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_known_channels_left_out_of_the_columns_are_wrong(norm: type[nn.LayerNorm | nn.RMSNorm]) -> None:
    toy = tokens(norm(8), rows={"a": [1, 2, 5]})
    model, (x,) = toy.build(), toy.inputs()
    gm, _, error = eliminate(model, toy.masks(model), (x,), COMPACT)
    assert error <= GATE
    with torch.no_grad():
        get_tensor(gm, layers(gm)[-1].weight)[:, 5:] = 0
        assert error_of(gm(x)[0], model(x)) > WRONG


def test_norm_in_half_precision_is_not_taken_apart() -> None:
    toy = tokens(nn.LayerNorm(8), rows={"a": [1, 2, 5]})
    model, (x,) = toy.build().bfloat16(), toy.inputs()
    gm = capture(model, (x.bfloat16(),), {}, toy.masks(model)).graph_module
    annotate(gm, toy.masks(model))
    run_passes(gm, (COMPACT,))
    assert [layer.weight_shape for layer in layers(gm)] == [(5, 5), (2, 8)]


def test_padded_average_taken_for_a_constant_is_wrong() -> None:
    model = double(Function(lambda m, x: m.b(F.avg_pool2d(m.a(x), 3, 2, padding=1)), a=conv(3, 4), b=conv(4, 2)))
    mask, x = torch.ones(4, 3, 1, 1, dtype=torch.bool), image(2, 3, 8, 8)
    mask[:2] = False
    *_, error = eliminate(model, {"a.weight": mask}, (x,))
    assert error <= GATE
    with torch.no_grad():
        expected = model(x)
        column = model.get_parameter("b.weight")[:, :2]
        model.get_parameter("b.bias").add_(column[:, :, 0, 0] @ model.get_parameter("a.bias")[:2])
        column.zero_()
        assert error_of(model(x), expected) > WRONG
