"""Masks have the wanted density and structure, and the layers that stay dense have none."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torchvision
from torch import nn

from benchmarks.masks import STRUCTURES, apply_masks, find_masked_weights, make_masks, restore_scale
from benchmarks.models import build_model
from tests.benchmarks.tiny import build_tiny_model


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.58, 0.8, 0.95])
def test_density_of_resnet18_is_met(structure: str, sparsity: float) -> None:
    masks = make_masks(build_model("resnet18"), structure, sparsity, 0)
    for name, mask in masks.items():
        density = int(mask.count_nonzero()) / mask.numel()
        # The smallest step: a row, a column of a group of 32 rows, a cell.
        step = {"channel": mask[0].numel(), "refill": mask[0].numel(), "rowgroup": 32, "unstructured": 1}[
            structure
        ] / mask.numel()
        assert density == pytest.approx(1.0 - sparsity, abs=0.501 * step), name


def test_stem_and_last_linear_stay_dense_and_vggs_hidden_linears_do_not() -> None:
    with torch.device("meta"):
        names = ("resnet50", "mobilenet_v2", "vit_b_16")
        weights = {name: set(find_masked_weights(torchvision.models.get_model(name))) for name in names}
    assert not weights["resnet50"] & {"conv1.weight", "fc.weight"}
    assert len(weights["resnet50"]) == 52
    assert not weights["mobilenet_v2"] & {"features.0.0.weight", "classifier.1.weight"}
    assert not weights["vit_b_16"] & {"conv_proj.weight", "heads.head.weight"}
    hidden = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    assert list(find_masked_weights(hidden)) == ["1.weight", "2.weight", "3.weight"]


def test_an_attention_is_masked_and_all_of_a_model_without_convolutions() -> None:
    attention = nn.TransformerEncoderLayer(8, 2, 16)
    names = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
    assert list(find_masked_weights(attention)) == names
    assert list(find_masked_weights(build_model("mlp"))) == ["0.weight", "2.weight"]


def test_row_groups_share_their_columns_and_differ_from_each_other() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(16, 40, 3), nn.Linear(4, 4))
    mask = make_masks(model, "rowgroup", 0.8, 0, rows=16)["1.weight"].flatten(1)
    for first in (0, 16, 32):
        block = mask[first : first + 16]
        assert bool((block == block[0]).all())
    assert len({tuple(row) for row in mask.tolist()}) == 3


def test_shuffled_rows_keep_the_groups_but_not_their_order() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(16, 64, 3), nn.Linear(4, 4))
    mask = make_masks(model, "rowgroup", 0.8, 0, rows=16, shuffle_rows=True)["1.weight"].flatten(1)
    groups = Counter(tuple(row) for row in mask.tolist())
    assert list(groups.values()) == [16] * 4
    assert not bool((mask[:16] == mask[0]).all())


def test_row_groups_stay_inside_a_conv_group() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(16, 16, 3, groups=2), nn.Linear(4, 4))
    mask = make_masks(model, "rowgroup", 0.5, 0, rows=32)["1.weight"].flatten(1)
    assert bool((mask[:8] == mask[0]).all())
    assert bool((mask[8:] == mask[8]).all())
    assert not torch.equal(mask[0], mask[8])


def test_channel_masks_are_whole_rows_and_depthwise_masks_are_cells() -> None:
    masks = make_masks(build_tiny_model(), "channel", 0.5, 0)
    rows = masks["3.weight"].flatten(1)
    assert bool((rows.all(1) | ~rows.any(1)).all())
    assert int(rows.any(1).sum()) == 8
    depthwise = masks["6.weight"].flatten(1)
    assert not bool((depthwise.all(1) | ~depthwise.any(1)).all())


def test_one_seed_gives_one_mask() -> None:
    model = build_tiny_model()
    first, again, other = (make_masks(model, "unstructured", 0.5, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["3.weight"], other["3.weight"])


def test_apply_masks_copies_and_restore_scale_divides() -> None:
    model = build_tiny_model()
    before = model.get_parameter("3.weight").clone()
    masks = make_masks(model, "rowgroup", 0.5, 0, rows=4)
    masked = apply_masks(model, masks)
    assert torch.equal(model.get_parameter("3.weight"), before)
    assert torch.equal(masked.get_parameter("3.weight"), before * masks["3.weight"])
    restore_scale(model, masks)
    torch.testing.assert_close(model.get_parameter("3.weight"), before * 2**0.5)


@pytest.mark.parametrize(
    ("structure", "sparsity", "rows", "message"),
    [("block", 0.5, 32, "structure"), ("channel", 1.0, 32, "sparsity"), ("rowgroup", 0.5, 0, "rows")],
)
def test_refuses_wrong_arguments(structure: str, sparsity: float, rows: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_masks(build_tiny_model(), structure, sparsity, 0, rows=rows)


def test_refuses_a_model_with_nothing_to_mask() -> None:
    with pytest.raises(ValueError, match="no convolution or linear layer"):
        make_masks(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Linear(3, 3)), "channel", 0.5, 0)
