"""The networks of torchvision through the whole compiler: the result equals the masked model in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import get_model

import fxprune
from benchmarks.masks import make_masks, restore_scale
from benchmarks.models import randomise_batch_norm
from tests.compiling import QUICK, TOLERANCE, force_kernels, kernels, largest_difference, run_masked

IMAGE_SIZES = {
    "alexnet": 64,
    "vgg16_bn": 64,
    "resnet18": 64,
    "resnet50": 64,
    "resnext50_32x4d": 64,
    "densenet121": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "mobilenet_v2": 64,
    "mobilenet_v3_large": 64,
    "efficientnet_b0": 64,
    "shufflenet_v2_x1_0": 64,
    "squeezenet1_1": 64,
    "regnet_y_400mf": 64,
    "convnext_tiny": 64,
    "vit_b_16": 64,
    "swin_t": 64,
}
"""Network to image height and width in pixels; small, since shapes do not matter to equality."""

OPTIONS: dict[str, dict[str, object]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
    "vit_b_16": {"image_size": IMAGE_SIZES["vit_b_16"]},
}


def load(name: str) -> nn.Module:
    """Return a network whose random weights keep the size of the signal, with random statistics."""
    model: nn.Module = get_model(name, weights=None, **OPTIONS.get(name, {}))
    for path, parameter in model.named_parameters():
        if path.endswith("layer_scale"):
            parameter.data.uniform_(0.3, 1)
        elif path.endswith("weight") and parameter.ndim > 1:
            nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5)
        elif not bool(parameter.any()):
            parameter.data.normal_(0, 0.1)
    randomise_batch_norm(model)
    return model.eval()


def check_network(name: str, structure: str, *batches: int) -> int:
    """Compare for every batch size; returns how many layers kernels ran."""
    model = load(name)
    masks = make_masks(model, structure, 0.8, seed=1)
    restore_scale(model, masks)
    compiled = fxprune.compile(model, masks, options=QUICK)
    count = 0
    for batch in batches:
        x = torch.randn(batch, 3, IMAGE_SIZES[name], IMAGE_SIZES[name])
        expected = run_masked(model, masks, torch.cat([x, x.flip(-1)]))
        assert isinstance(expected, torch.Tensor)
        scale = float(expected.abs().max())
        assert float((expected[0] - expected[-1]).abs().max()) > 1e-2 * scale, "the output hardly sees the image"
        found = compiled(x)
        count = len(kernels(compiled))
        difference = largest_difference(found, expected[:batch])
        print(f"{name} {structure} batch {batch}: {difference:.1e}, {count} of {len(compiled.report.layers)} kernels")  # noqa: T201
        assert difference <= TOLERANCE, str(compiled.report)
    return count


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("resnet18", "rowgroup"),
        pytest.param("mobilenet_v2", "unstructured", marks=pytest.mark.slow),
        pytest.param("shufflenet_v2_x1_0", "channel", marks=pytest.mark.slow),
    ],
)
def test_small_zoo_is_exact(name: str, structure: str) -> None:
    assert check_network(name, structure, 1) > 0 or structure == "channel"


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["rowgroup", "channel", "unstructured"])
@pytest.mark.parametrize("name", IMAGE_SIZES)
def test_zoo_is_exact(name: str, structure: str) -> None:
    assert check_network(name, structure, 1, 3) > 0 or structure != "rowgroup"


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGE_SIZES)
def test_zoo_is_exact_with_kernels_everywhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force_kernels(monkeypatch, "rows", "pixels", "winograd")
    assert check_network(name, "unstructured", 2) > 0
