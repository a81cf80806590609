"""Every pass of the pipeline on torchvision's networks: the output equals the masked model in float64."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torchvision.models import get_model

from fxprune.graph import annotate, capture
from fxprune.passes import PassRecord, run_passes
from tests.networks import PIPELINE, apply_masks, difference, double, image, random_masks, reference, run

IMAGE_SIZES = {
    "alexnet": 64,
    "vgg16_bn": 32,
    "resnet50": 64,
    "resnext50_32x4d": 64,
    "densenet121": 64,
    "googlenet": 64,
    "inception_v3": 128,
    "mobilenet_v3_large": 64,
    "efficientnet_b0": 64,
    "shufflenet_v2_x1_0": 64,
    "mobilenet_v2": 64,
    "regnet_y_400mf": 64,
    "convnext_tiny": 64,
    "vit_b_16": 224,
    "swin_t": 64,
}
"""Network to image height and width in pixels; small, since shapes do not matter to equality."""


def load(name: str) -> nn.Module:
    """Return a network with random weights, every parameter different from zero."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = double(get_model(name, weights=None, **options))
    for parameter in model.parameters():
        if not bool(parameter.any()):
            parameter.data.normal_(0, 0.1)
    return model


def whole_rows(masks: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keep whole rows, by each row's first cell: row groups are then found at once."""
    return {
        name: mask.flatten(1)[:, :1].expand(-1, mask[0].numel()).reshape(mask.shape) for name, mask in masks.items()
    }


def check_every_pass(name: str, size: int) -> None:
    """Compare the graph with the masked model before the first and after every pass."""
    model, x = load(name), image(2, 3, size, size)
    gm, masks = capture(model, (x,), {}).graph_module, whole_rows(random_masks(model))
    annotate(gm, masks)
    expected = reference(apply_masks(model, masks), x)
    differences: dict[str, float] = {}

    def watch(_: int, gm: fx.GraphModule, record: PassRecord) -> None:
        differences[record.name] = difference(run(gm, x)[0], expected)

    run_passes(gm, PIPELINE, (watch,))
    assert len(differences) == 1 + len(PIPELINE)
    assert max(differences.values()) < 1e-9, differences


@pytest.mark.parametrize(("name", "size"), [("resnet18", 48), ("squeezenet1_1", 48)])
def test_every_pass_keeps_the_output(name: str, size: int) -> None:
    check_every_pass(name, size)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(IMAGE_SIZES))
def test_every_pass_keeps_the_output_of_the_rest(name: str) -> None:
    check_every_pass(name, IMAGE_SIZES[name])
