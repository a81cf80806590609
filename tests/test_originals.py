"""The report of a model without its dead channels counts from the user's model, and names what went."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune

X = torch.randn(1, 8, 6, 6)


def chain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 1), nn.Flatten(), nn.Linear(576, 5)
    )


@pytest.mark.parametrize("target", ["torch", "cpu"])
def test_counts_are_those_of_the_whole_layers(target: str) -> None:
    model = chain().eval()
    mask = torch.ones(32, 8, 3, 3, dtype=torch.bool)
    mask[::2] = False
    compiled = fxprune.compile(model, {"0.weight": mask}, target, example_inputs=X, options={"measure": False})
    first, second, last = compiled.report.layers
    assert (first.macs_dense, first.macs_kept) == (32 * 72 * 36, 16 * 72 * 36)
    assert (first.weight_shape, first.density) == ((32, 8, 3, 3), 0.5)
    assert (second.macs_dense, second.macs_run, second.density) == (32 * 16 * 36, 16 * 16 * 36, 0.5)
    assert second.reason.endswith("; cut from 16x32x1x1 to 16x16x1x1")
    assert last.density == 1
    totals = compiled.report.totals()
    assert totals.dense_parameters == 32 * 72 + 32 * 16 + 576 * 5
    assert totals.macs_dense == 36 * (32 * 72 + 32 * 16) + 576 * 5
    assert totals.dense_size_bytes == 4 * totals.dense_parameters


def test_a_layer_that_went_is_named() -> None:
    model = chain().eval()
    masks = {"2.weight": torch.zeros(16, 32, 1, 1, dtype=torch.bool)}
    compiled = fxprune.compile(model, masks, example_inputs=X, options={"measure": False})
    found = {layer.name: layer for layer in compiled.report.layers}
    assert set(found) == {"0", "2", "4"}
    assert all(layer.kernel == "none: removed" and layer.macs_run == 0 for layer in found.values())
    assert found["2"].kept_weight == 0
    assert found["0"].macs_dense == 32 * 72 * 36


def test_parts_of_a_packed_layer_count_once() -> None:
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    mask = torch.ones(48, 16, dtype=torch.bool)
    mask[16:20] = mask[32:40] = False
    compiled = fxprune.compile(model, {"self_attn.in_proj_weight": mask}, "torch", example_inputs=torch.randn(2, 5, 16))
    weights = {name: weight.numel() for name, weight in model.named_parameters() if weight.ndim > 1}
    assert compiled.report.totals().dense_parameters == sum(weights.values())
