"""MACs of small layers, counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.macs import MacCount, count_macs
from benchmarks.masks import make_masks
from benchmarks.models import build_model, make_input


def test_counts_convolution_groups_and_linear() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.Flatten(), nn.Linear(6 * 5 * 5, 7)).eval()
    masks = {"0.weight": torch.zeros(6, 2, 3, 3, dtype=torch.bool)}
    masks["0.weight"][0] = True
    count = count_macs(model, masks, torch.randn(2, 4, 5, 5))
    linear = 2 * 150 * 7
    assert count == MacCount(dense=2 * 25 * 6 * 18 + linear, kept=2 * 25 * 18 + linear)
    assert count.limit == pytest.approx(count.dense / count.kept)


def test_limits_of_resnet50() -> None:
    model = build_model("resnet50")
    for sparsity, limit in ((0.58, 2.3), (0.8, 4.5), (0.9, 7.9)):
        macs = count_macs(model, make_masks(model, "rowgroup", sparsity, 0), make_input("resnet50", 1))
        assert macs.dense == 4_089_184_256
        assert macs.limit == pytest.approx(limit, abs=0.05)


def test_counts_an_attention_with_its_products() -> None:
    model, x = build_model("vit_b_16"), make_input("vit_b_16", 1)
    masks = make_masks(model, "rowgroup", 0.8, 0)
    stem, head = 196 * 768 * 3 * 16 * 16, 768 * 1000
    products, projections = 12 * 2 * 197**2 * 768, 12 * 197 * 12 * 768**2
    assert count_macs(model, masks, x).dense == stem + head + products + projections
    assert count_macs(model, masks, x).kept == pytest.approx(stem + head + products + projections / 5, rel=1e-3)
