"""Few views, and none between layers and what they are fused with: the seven checks, one test a guard."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxprune.errors import PostconditionError
from fxprune.operators import fused_linear
from fxprune.passes import FuseEpilogue, MergeViews, run_passes
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

_aten = torch.ops.aten
_LINEAR, _RESHAPE, _PERMUTE = _aten.linear.default, _aten.reshape.default, _aten.permute.default

_ORDER = torch.contiguous_format

SHAPE = (2, 3, 4)


def linear(function: Callable[..., object]) -> nn.Module:
    """A network of one linear layer from 4 channels to 6."""
    return double(Function(function, a=nn.Linear(4, 6)))


REWRITES: dict[str, tuple[Callable[..., object], list[object]]] = {
    "run to nothing": (lambda _, x: torch.tanh(x.transpose(0, 1).transpose(1, 0)), [_aten.tanh.default]),
    "run to a reshape": (lambda _, x: torch.tanh(x.flatten(0, 1).unsqueeze(0)), [_RESHAPE, _aten.tanh.default]),
    "clone that joins": (
        lambda _, x: torch.tanh(x.transpose(0, 1).reshape(6, 4)),
        [_PERMUTE, _RESHAPE, _aten.tanh.default],
    ),
    "run to both": (
        lambda _, x: torch.tanh(x.view(2, 3, 2, 2).transpose(1, 2).unsqueeze(0).squeeze(0).transpose(0, 1)),
        [_RESHAPE, _PERMUTE, _aten.tanh.default],
    ),
    "clone in order": (lambda _, x: torch.tanh(x.clone()), [_aten.tanh.default]),
    "clone between views": (
        lambda _, x: torch.tanh(x.transpose(0, 1).clone(memory_format=_ORDER).view(3, 2, 2, 2)),
        [_RESHAPE, _PERMUTE, _aten.tanh.default],
    ),
    "behind the layer": (
        lambda m, x: torch.tanh(m.a(x.transpose(0, 1)).reshape(3, 2, 2, 3)),
        [_LINEAR, _PERMUTE, _RESHAPE, _aten.tanh.default],
    ),
}


@pytest.mark.parametrize("name", REWRITES)
def test_applies_and_output_is_equal(name: str) -> None:
    function, calls = REWRITES[name]
    model, x = linear(function), image(*SHAPE)
    masks = random_masks(model) if _LINEAR in calls else {}
    gm = build(model, x, masks=masks)
    first, second = run_twice(gm, MergeViews())
    assert (first.modified, second.modified) == (True, False)
    assert targets(gm) == calls
    assert difference(run(gm, x)[0], reference(apply_masks(model, masks), x)) < 1e-9


def _attend(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Heads joined, a projection over tokens first, and the residual in the order of images."""
    heads = torch.tanh(x.view(2, 3, 2, 2).transpose(1, 2))
    joined = heads.permute(2, 0, 1, 3).reshape(6, 4)
    tokens: torch.Tensor = m.get_submodule("a")(joined)
    return x + tokens.view(3, 2, 4).transpose(0, 1)


def test_views_between_a_projection_and_its_residual_move_in_front() -> None:
    model, x = double(Function(_attend, a=nn.Linear(4, 4))), image(*SHAPE)
    gm = build(model, x)
    first, second = run_twice(gm, MergeViews())
    assert (first.modified, second.modified) == (True, False)
    run_passes(gm, (FuseEpilogue(),))
    assert targets(gm)[2:] == [_aten.tanh.default, _PERMUTE, _RESHAPE, fused_linear]
    assert layers(gm)[0].residual is not None
    assert difference(run(gm, x)[0], reference(model, x)) < 1e-9


@pytest.mark.parametrize("batch", [1, 3])
def test_attention_of_torch(batch: int, golden: Callable[[str, str], None]) -> None:
    model = double(nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation="gelu", batch_first=True))
    x = image(batch, 5, 8)
    masks = random_masks(model)
    gm = build(model, x, masks=masks)
    run_passes(gm, (MergeViews(), FuseEpilogue()))
    assert sum(layer.residual is not None for layer in layers(gm)) == 2
    assert targets(gm).count(_aten.clone.default) == 1  # the tokens of all three are taken apart behind it
    if batch == 1:
        golden("merge_views", format_graph(gm))
    assert difference(run(gm, x)[0], reference(apply_masks(model, masks), x)) < 1e-9


@pytest.mark.parametrize("sizes", [(4, 1), (1, 6), (1, 1)])
@pytest.mark.parametrize("batch", [1, 2])
def test_layers_of_one_channel(sizes: tuple[int, int], batch: int) -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> object:
        tokens = m.get_submodule("a")(x[..., : sizes[0]].clone().transpose(0, 1))
        return torch.tanh(tokens.reshape(3, batch, sizes[1]).transpose(0, 1).unsqueeze(1))

    model, x = double(Function(forward, a=nn.Linear(*sizes))), image(batch, 3, 4)
    gm = build(model, x)
    _, second = run_twice(gm, MergeViews())
    assert not second.modified
    assert difference(run(gm, x)[0], reference(model, x)) < 1e-9


KEPT: dict[str, Callable[..., object]] = {
    "one view": lambda _, x: torch.tanh(x.transpose(0, 1)),
    "two that are two": lambda _, x: torch.tanh(x.view(2, 3, 2, 2).transpose(1, 2)),
    "part": lambda _, x: torch.tanh(x.transpose(0, 1)[1:]),
    "clone of what lies otherwise": lambda _, x: torch.tanh(
        x.transpose(0, 1).clone(memory_format=torch.contiguous_format)
    ),
    "layer that others read": lambda m, x: torch.tanh(m.a(x.transpose(0, 1))),
    "layer that a view and another read": lambda m, x: (y := m.a(x.transpose(0, 1))).transpose(0, 1).tanh().sum() + y,
    "last axis moved": lambda m, x: torch.tanh(m.a(x.reshape(4, 6).tanh().t()).reshape(2, 3, 6)),
}


@pytest.mark.parametrize("name", KEPT)
def test_leaves_the_rest_alone(name: str) -> None:
    model, x = linear(KEPT[name]), image(*SHAPE)
    gm = build(model, x)
    before = format_graph(gm)
    (record,) = run_passes(gm, (MergeViews(),))
    assert not record.modified
    assert format_graph(gm) == before


@pytest.mark.parametrize(
    "function",
    [lambda _, x: x.clone(), lambda _, x: x.clone().view(6, 4), lambda _, x: x.view(6, 4).clone().view(3, 8)],
    ids=["itself", "a view", "between views"],
)
def test_an_output_shares_no_memory_with_an_input(function: Callable[..., object]) -> None:
    model, x = double(Function(function)), image(*SHAPE)
    gm = build(model, x)
    run_passes(gm, (MergeViews(),))
    (found,) = run(gm, x)
    assert torch.equal(found, reference(model, x))
    assert found.data_ptr() != x.data_ptr()


def test_views_copy_where_tensors_lie_otherwise_now() -> None:
    model = double(Function(lambda m, x: torch.tanh(m.a(x.transpose(0, 1)).view(18, 2)), a=nn.Linear(4, 6)))
    x = image(*SHAPE)
    gm = build(model, x)
    run_passes(gm, (MergeViews(),))
    assert _aten.view.default not in targets(gm)
    assert difference(run(gm, x)[0], reference(model, x)) < 1e-9


def test_ensures_finds_what_is_left() -> None:
    gm = build(linear(lambda _, x: torch.tanh(x.transpose(0, 1).transpose(1, 0))), image(*SHAPE))
    with pytest.raises(PostconditionError, match="could be merged or moved"):
        MergeViews().ensures(gm)


def test_convolutions_are_no_business_of_it() -> None:
    model = double(Function(lambda m, x: F.relu(m.a(x)).flatten(2).transpose(1, 2), a=nn.Conv2d(3, 4, 3)))
    x = image(2, 3, 6, 6)
    gm = build(model, x)
    (record,) = run_passes(gm, (MergeViews(),))
    assert not record.modified
