"""Models are reproducible, in eval mode, and their output depends on their input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.case import Case, build_problem
from benchmarks.models import build_model, make_input


def test_one_seed_gives_one_model_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, again = build_model("resnet18", 3), build_model("resnet18", 3)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


def test_batch_norm_statistics_are_random_and_the_model_is_in_eval_mode() -> None:
    norm = build_model("resnet18").get_submodule("layer1.0.bn1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert float(norm.running_mean.std()) == pytest.approx(0.1, rel=0.5)
    assert float(norm.weight.detach().min()) >= 0.5
    assert not norm.training


def test_refuses_an_unknown_model() -> None:
    with pytest.raises(ValueError, match="resnet51"):
        build_model("resnet51")


@pytest.mark.parametrize(("name", "pixels"), [("resnet18", 32), ("resnet50", 32), ("vgg16_bn", 32)])
def test_a_model_for_cifar_keeps_the_resolution_of_its_images(name: str, pixels: int) -> None:
    model = build_model(name, image=32)
    seen: list[torch.Size] = []
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(lambda *call: seen.append(call[2].shape))
    with torch.no_grad():
        y = model(torch.randn(2, 3, 32, 32))
    assert y.shape == (2, 10)
    assert seen[0][-2:] == (pixels, pixels)


@pytest.mark.parametrize(("name", "image"), [("mobilenet_v2", 32), ("resnet18", 64)])
def test_other_sizes_are_refused(name: str, image: int) -> None:
    with pytest.raises(ValueError, match=f"{name} has no form for images of {image} x {image}"):
        build_model(name, image=image)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit_b_16", "mlp"])
def test_the_output_of_a_masked_model_depends_on_its_input(name: str) -> None:
    problem = build_problem(Case(name, 1, "unstructured", 0.8))
    with torch.no_grad():
        other = problem.masked(make_input(name, 1, seed=1))
    assert problem.find_error(other) > 1e-3


def test_refuses_a_batch_of_zero() -> None:
    with pytest.raises(ValueError, match="batch"):
        build_problem(Case("resnet18", 0, "channel", 0.5))
