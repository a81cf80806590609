"""The models of the benchmark, with random weights and random batch-norm statistics."""

from __future__ import annotations

import torch
import torchvision
from torch import nn

CONVOLUTIONAL = ("resnet18", "resnet50", "vgg16_bn", "mobilenet_v2")
"""Names of the convolutional networks, as torchvision spells them."""

MODELS = (*CONVOLUTIONAL, "vit_b_16", "mlp")
"""Names of all models; "mlp" is the hidden part of a transformer's block, 768-3072-768."""

IMAGE_SIZE = 224
"""Height and width of the input image, in pixels."""

CIFAR_SIZE = 32
"""Height and width of CIFAR's images."""

_CIFAR_CLASSES = 10

_TOKENS, _WIDTH = 196, 768
"""Tokens of an image of 224 x 224 in patches of 16 x 16, and the numbers of each."""

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def build_model(name: str, seed: int = 0, image: int = IMAGE_SIZE) -> nn.Module:
    """Build a model in eval mode; nothing is downloaded, and one seed gives one model, bit for bit.

    Args:
        name: One of `MODELS`.
        seed: Seed of weights and batch-norm statistics; the global generator is left as it was.
        image: Height and width of its images: 224, or 32 for the form that papers train on CIFAR.

    Raises:
        ValueError: The name is not one of `MODELS`, or there is no form for such images.
    """
    if name not in MODELS:
        raise ValueError(f"model is {name!r}; it must be one of {', '.join(MODELS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = _build_mlp() if name == "mlp" else torchvision.models.get_model(name, weights=None)
        _draw_zeroed_layers(model)
        if image != IMAGE_SIZE:
            _shrink_to_cifar(model, name, image)
    _scale_grouped_weights(model)
    randomise_batch_norm(model, seed)
    return model.eval()


def _build_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(_WIDTH, 4 * _WIDTH), nn.GELU(), nn.Linear(4 * _WIDTH, _WIDTH))


def _draw_zeroed_layers(model: nn.Module) -> None:
    """Draw the linear layers that torchvision sets to zero: nothing would be seen of what lies before them."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and not bool(module.weight.any()):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)


def _shrink_to_cifar(model: nn.Module, name: str, image: int) -> None:
    """Give a network the first and the last layers that images of 32 x 32 and ten classes want."""
    if image == CIFAR_SIZE and isinstance(model, torchvision.models.ResNet):
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        model.fc = nn.Linear(model.fc.in_features, _CIFAR_CLASSES)
    elif image == CIFAR_SIZE and isinstance(model, torchvision.models.VGG):
        model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, _CIFAR_CLASSES)
    else:
        raise ValueError(f"{name} has no form for images of {image} x {image}; sizes are {IMAGE_SIZE} and {CIFAR_SIZE}")


def randomise_batch_norm(model: nn.Module, seed: int = 0) -> None:
    """Give every batch norm statistics that a wrong fold would not survive.

    Freshly built ones (mean 0, variance 1, scale 1, shift 0) would hide a forgotten term.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if not isinstance(module, _BATCH_NORMS) or module.running_mean is None or module.running_var is None:
            continue
        with torch.no_grad():
            module.running_mean.normal_(0.0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            if module.affine:
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0.0, 0.2, generator=generator)


def _scale_grouped_weights(model: nn.Module) -> None:
    """Multiply weights of grouped convolutions by the root of the group count.

    torchvision draws them for the fan-out of an ungrouped layer; so small, they drown the input in the shifts of the
    batch norms, and a check of the output would see nothing.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            with torch.no_grad():
                module.weight.mul_(module.groups**0.5)


def make_input(name: str, batch: int, seed: int = 0) -> torch.Tensor:
    """Draw a normal input, float32, contiguous: [N, 3, 224, 224], or [N, 196, 768] for "mlp".

    Args:
        name: One of `MODELS`.
        batch: Batch size N.
        seed: Seed of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (_TOKENS, _WIDTH) if name == "mlp" else (3, IMAGE_SIZE, IMAGE_SIZE)
    return torch.randn(batch, *shape, generator=generator)
