"""Every wrong mask is refused with a message that names the parameter, says what was found, and what to do."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from fxprune.errors import FxpruneError, MaskError, UnsupportedError
from fxprune.masks import resolve_masks


def make_model() -> nn.Module:
    block = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    model = nn.Sequential()
    model.add_module("block", block)
    model.add_module("table", nn.Embedding(5, 6))
    model.add_module("fc", nn.Linear(6, 3))
    return model.eval()


def make_mask(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    mask = torch.ones(3, 6, dtype=dtype)
    mask[1, 2] = value
    return mask


def read_message(masks: object, kind: type[FxpruneError] = MaskError) -> str:
    with pytest.raises(kind) as caught:
        resolve_masks(make_model(), cast("dict[str, object]", masks))
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "found", "cure"),
    [
        ("blok.0.weight", "names no weight", "did you mean 'block.0.weight'"),
        ("module.fc.weight", "names no weight", "did you mean 'fc.weight'"),
        ("fc.weight_orig", "names no weight", "did you mean 'fc.weight'"),
        ("block", "names no weight", "model.named_parameters()"),
        ("zzz", "its 2 weights are 'block.0.weight', 'fc.weight'", "model.named_parameters()"),
        ("fc.bias", "names a bias", "leave it out"),
        ("block.1.weight", "shape [4] and is part of BatchNorm2d", "leave it out"),
        ("block.1", "shape [4] and is part of BatchNorm2d", "leave it out"),
        ("table.weight", "shape [5, 6] and is part of Embedding", "leave it out"),
        (3, "has a name of type int", "use that of the parameter"),
    ],
)
def test_wrong_name(key: object, found: str, cure: str) -> None:
    message = read_message({key: torch.ones(3, 6)})
    assert repr(key) in message
    assert found in message
    assert cure in message


@pytest.mark.parametrize(
    ("mask", "found", "cure"),
    [
        (torch.ones(6, 3), "shape [6, 3], its weight has [3, 6]", "reshape it to [3, 6]"),
        (torch.ones(3), "shape [3], its weight has [3, 6]", "expand it over the other axes"),
        (torch.ones(3, 1), "shape [3, 1], its weight has [3, 6]", "expand it over the other axes"),
        (torch.ones(3, 7), "shape [3, 7], its weight has [3, 6]", "one value for each weight"),
        (torch.ones(()), "shape [], its weight has [3, 6]", "one value for each weight"),
        (torch.ones(0, 6), "shape [0, 6], its weight has [3, 6]", "one value for each weight"),
        (make_mask(0.5), "holds 0.5 at [1, 2], which is neither 0 nor 1", "scores > threshold"),
        (torch.full((3, 6), 2), "holds 2 at [0, 0] and 17 more values", "scores > threshold"),
        (make_mask(-1, torch.int8), "holds -1 at [1, 2]", "scores > threshold"),
        (make_mask(float("nan")), "holds nan at [1, 2]", "scores > threshold"),
        (make_mask(float("inf")), "holds inf at [1, 2]", "scores > threshold"),
        (make_mask(1 + 2**-23), "holds 1.0000001192092896 at [1, 2]", "scores > threshold"),
        (torch.ones(3, 6, dtype=torch.complex64), "dtype torch.complex64", "bool, integer or float"),
        (torch.ones(3, 6, device="meta"), "meta device", "give a mask that does"),
        (np.full((3, 6), 0.5), "holds 0.5 at [0, 0]", "scores > threshold"),
        (np.full((3, 6), "kept"), "dtype <U4", "bool, integer or float"),
        (np.full((3, 6), None), "dtype object", "bool, integer or float"),
        ([[1] * 6] * 3, "is of type list", "torch tensor or NumPy array"),
        (None, "is of type NoneType", "leave out a dense layer"),
        ({"weight": torch.ones(3, 6)}, "is of type dict", "torch tensor or NumPy array"),
        (nn.Linear(6, 3), "is of type Linear", "torch tensor or NumPy array"),
        (torch.ones(3, 6).to_mkldnn(), "layout torch._mkldnn", "mask.to_dense()"),
    ],
)
def test_wrong_value(mask: object, found: str, cure: str) -> None:
    message = read_message({"fc.weight": mask})
    assert "'fc.weight'" in message
    assert found in message
    assert cure in message


@pytest.mark.parametrize("masks", [torch.ones(3, 6), [torch.ones(3, 6)], 0.8, True, make_model()], ids=type)
def test_masks_that_are_no_mapping(masks: object) -> None:
    message = read_message(masks)
    assert f"masks is of type {type(masks).__name__}" in message
    assert "None" in message


def test_empty_mapping() -> None:
    assert "no mask given. Pass None" in read_message({})


def test_all_mistakes_are_reported_at_once() -> None:
    message = read_message({"fc": torch.ones(2, 2), "block.0": torch.zeros(4, 2, 3, 3), "fcc": torch.ones(3, 6)})
    assert message.startswith("2 masks do not fit the model:\n- masks['fc'] has shape [2, 2]")
    assert "\n- masks['fcc'] names no weight" in message


def test_long_lists_of_mistakes_are_cut() -> None:
    message = read_message({f"layer{index}": torch.ones(1) for index in range(13)})
    assert message.startswith("13 masks do not fit")
    assert message.endswith("\n- and 3 more.")
    assert len(message.splitlines()) == 12


def test_one_weight_named_twice() -> None:
    message = read_message({"fc": torch.ones(3, 6), "fc.weight": torch.ones(3, 6)})
    assert "masks['fc.weight'] is a second mask for the weight 'fc.weight'; give one of them" in message


def test_different_masks_for_one_tied_parameter() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    same = torch.eye(3)
    assert set(resolve_masks(model, {"0": same, "1": same})) == {"0.weight", "1.weight"}
    with pytest.raises(
        MaskError, match=r"masks\['1'\] differs from the mask of '0.weight', which is the same parameter"
    ):
        resolve_masks(model, {"0": same, "1": 1 - same})


def test_mask_whose_one_means_pruned() -> None:
    layer = nn.Linear(4, 4)
    layer.weight.data[:2] = 0
    with pytest.raises(MaskError, match="if its 1 means pruned, give 1 - mask"):
        resolve_masks(layer, {"weight": layer.weight == 0})


def test_model_without_weights() -> None:
    with pytest.raises(MaskError, match="it has no convolution or linear layer"):
        resolve_masks(nn.ReLU(), {"fc": torch.ones(1)})


@pytest.mark.parametrize("model", [{"fc.weight": torch.ones(3, 6)}, torch.ones(3, 6), None, nn.Linear], ids=type)
def test_model_of_another_type(model: object) -> None:
    with pytest.raises(UnsupportedError, match=f"model is of type {type(model).__name__}; give a torch.nn.Module"):
        resolve_masks(cast("nn.Module", model), None)


def test_parameter_without_a_shape() -> None:
    with pytest.raises(UnsupportedError, match=r"'1\.weight' has no shape yet\. Run the model once"):
        resolve_masks(nn.Sequential(nn.ReLU(), nn.LazyLinear(3)), None)


def test_zeros_of_a_weight_without_values() -> None:
    with pytest.raises(UnsupportedError, match=r"'weight' is on the meta device.*Load the weights"):
        resolve_masks(nn.Linear(3, 3, device="meta"), None)


def test_damaged_prune_buffer() -> None:
    model = nn.Sequential(nn.Linear(6, 3))
    prune.random_unstructured(model[0], "weight", 0.5)
    cast("Tensor", model[0].weight_mask)[0, 0] = 0.25
    with pytest.raises(MaskError, match=r"masks\['0.weight'\] holds 0.25 at \[0, 0\]"):
        resolve_masks(model, None)
