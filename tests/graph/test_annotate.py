"""Masks on the nodes that own a weight, exact zeros in the weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import fx, nn

from fxprune.errors import MaskError
from fxprune.graph import annotate, annotation_of, capture, get_tensor
from fxprune.verify import verify
from tests.networks import Function, apply_masks, double, image, layers, random_masks, reference, run


def two_layers() -> tuple[nn.Module, fx.GraphModule, torch.Tensor]:
    model, x = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))), image(2, 3, 4, 4)
    return model, capture(model, (x,), {}).graph_module, x


def test_result_equals_the_masked_model() -> None:
    model, gm, x = two_layers()
    masks = random_masks(model)
    annotate(gm, masks)
    verify(gm)
    assert torch.equal(run(gm, x)[0], reference(apply_masks(model, masks), x))


def test_users_weights_stay_as_they_are() -> None:
    model, gm, _ = two_layers()
    before = model.get_parameter("0.weight").detach().clone()
    annotate(gm, random_masks(model))
    assert torch.equal(model.get_parameter("0.weight"), before)


def test_users_mask_is_copied() -> None:
    model, gm, _ = two_layers()
    masks = random_masks(model)
    annotate(gm, masks)
    annotation = annotation_of(layers(gm)[0].node)
    assert annotation is not None
    assert annotation.name == "0.weight"
    nnz = int(masks["0.weight"].count_nonzero())
    masks["0.weight"].fill_(False)
    assert int(annotation.mask.count_nonzero()) == nnz


def test_layers_without_a_mask_keep_everything() -> None:
    _, gm, _ = two_layers()
    annotate(gm, {"0.weight": torch.zeros(4, 3, 3, 3, dtype=torch.bool)})
    first, second = (annotation_of(layer.node) for layer in layers(gm))
    assert first is not None
    assert second is not None
    assert (first.nnz, second.density) == (0, 1.0)


def test_pruned_places_become_zero_whatever_they_hold() -> None:
    model = nn.Linear(2, 2).eval()
    model.weight.data = torch.tensor([[math.nan, 1.0], [math.inf, 2.0]])
    gm = capture(model, (torch.randn(1, 2),), {}).graph_module
    annotate(gm, {"weight": torch.tensor([[False, True], [False, True]])})
    assert torch.equal(get_tensor(gm, layers(gm)[0].weight), torch.tensor([[0.0, 1.0], [0.0, 2.0]]))


@pytest.mark.parametrize("masks", [{}, {"weight": torch.ones(2, 2, dtype=torch.bool)}])
def test_kept_values_that_are_not_finite_are_refused(masks: dict[str, torch.Tensor]) -> None:
    model = nn.Linear(2, 2).eval()
    model.weight.data[0, 0] = math.nan
    gm = capture(model, (torch.randn(1, 2),), {}).graph_module
    with pytest.raises(MaskError, match=r"'weight' has 1 values that are kept but not finite"):
        annotate(gm, masks)


def test_unknown_name_is_refused_with_the_nearest() -> None:
    _, gm, _ = two_layers()
    with pytest.raises(MaskError, match=r"'0.weigth' belongs to no tensor.*Nearest name: '0.weight'"):
        annotate(gm, {"0.weigth": torch.ones(4, 3, 3, 3, dtype=torch.bool)})


@pytest.mark.parametrize("mask", [torch.ones(4, 3, 3, 2, dtype=torch.bool), torch.ones(4, 3, 3, 3)])
def test_wrong_shape_or_type_is_refused(mask: torch.Tensor) -> None:
    _, gm, _ = two_layers()
    with pytest.raises(MaskError, match=r"needs to be bool with the weight's shape \[4, 3, 3, 3\]"):
        annotate(gm, {"0.weight": mask})


def test_weight_that_forward_leaves_out_is_left_out() -> None:
    model = Function(lambda m, x: m.a(x), a=nn.Linear(3, 3), aux=nn.Linear(3, 3)).eval()
    gm = capture(model, (torch.randn(1, 3),), {}).graph_module
    annotate(gm, {"aux.weight": torch.eye(3, dtype=torch.bool)})
    assert [layer.weight.target for layer in layers(gm)] == ["a.weight"]


def test_tied_weights_need_one_mask() -> None:
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    gm = capture(Function(lambda m, x: m.b(m.a(x)), a=a, b=b).eval(), (torch.randn(1, 3),), {}).graph_module
    mask = torch.eye(3, dtype=torch.bool)
    annotate(gm, {"a.weight": mask, "b.weight": mask.clone()})
    with pytest.raises(MaskError, match=r"'b.weight' differs from the mask of 'a.weight'"):
        annotate(gm, {"a.weight": mask, "b.weight": ~mask})
