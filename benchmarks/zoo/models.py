"""The models of the matrix: how each is built, and the two input shapes at which it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torchvision.models as tv
from torch import nn

from benchmarks.zoo.blocks import BLOCKS

Shape = tuple[int, ...]

SEGMENTATION = tuple(tv.list_models(module=tv.segmentation))
PLAIN_VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d")
TIER_A: tuple[str, ...] = (*tv.list_models(module=tv), *SEGMENTATION, *PLAIN_VIDEO)
"""90 models that have to be exact."""

TIER_B: tuple[str, ...] = ("mvit_v2_s", "swin3d_t", *BLOCKS)
"""Models and blocks that have to be exact too, and that say why if nothing shrinks."""

_IMAGES: tuple[Shape, ...] = ((3, 64, 64), (3, 97, 75))
_SHAPES: dict[str, tuple[Shape, ...]] = {
    "alexnet": ((3, 64, 64), (3, 99, 83)),
    "inception_v3": ((3, 75, 75), (3, 97, 91)),
    "maxvit_t": ((3, 224, 224),),
    "vit_h_14": ((3, 56, 56), (3, 84, 84)),
    "vit": ((3, 64, 64), (3, 96, 96)),
    "s3d": ((3, 16, 224, 224),),
    "r3d_18": ((3, 4, 32, 32), (3, 8, 40, 36)),
    "mc3_18": ((3, 4, 32, 32), (3, 8, 40, 36)),
    "r2plus1d_18": ((3, 4, 32, 32), (3, 8, 40, 36)),
    "mvit_v2_s": ((3, 4, 64, 64), (3, 8, 64, 96)),
    "swin3d_t": ((3, 8, 64, 64), (3, 6, 70, 90)),
}
"""Name, or its part before the first underscore, to input shapes without the batch; all others read `_IMAGES`.

Shapes do not matter to equality, so they are small: only where a model insists is an image 224 pixels wide.
"""


@dataclass(frozen=True)
class Problem:
    """A model in eval mode and float64, and its inputs.

    Attributes:
        model: The model; random weights, statistics different from those of a fresh one.
        inputs: One batch.
        outputs: Names of the layers whose rows are the model's outputs; masks leave them alone.
    """

    model: nn.Module
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[str, ...]


def find_shapes(name: str) -> tuple[Shape, ...]:
    """Return the input shapes at which a model runs, without the batch."""
    if name in BLOCKS:
        return BLOCKS[name].shapes
    return _SHAPES.get(name, _SHAPES.get(name.split("_", maxsplit=1)[0], _IMAGES))


def build_problem(name: str, shape: Shape, batch: int, seed: int = 0) -> Problem:
    """Build a model with random numbers everywhere, and one batch of inputs."""
    torch.manual_seed(seed)
    if name in BLOCKS:
        block = BLOCKS[name]
        model, outputs = block.build(), block.outputs
    else:
        model = _build_torchvision(name, shape)
        outputs = _find_outputs(model)
    model = model.double().eval()
    randomise(model)
    return Problem(model, draw_inputs(name, shape, batch), outputs)


def draw_inputs(name: str, shape: Shape, batch: int) -> tuple[torch.Tensor, ...]:
    """Draw one batch of inputs for a model."""
    torch.manual_seed(batch)
    if name in BLOCKS:
        return BLOCKS[name].draw((batch, *shape))
    return (torch.randn(batch, *shape, dtype=torch.float64),)


def reads_image_size(name: str) -> bool:
    """Whether a model is built for one input shape."""
    return name.startswith(("vit_", "mvit_"))


def _build_torchvision(name: str, shape: Shape) -> nn.Module:
    """Return a model of torchvision with random weights; nothing is downloaded."""
    options: dict[str, object] = {"weights": None}
    if name in SEGMENTATION:
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    if name.startswith("vit_"):
        options["image_size"] = shape[-1]
    model = cast("Callable[..., nn.Module]", tv.get_model)(name, **options)
    if isinstance(model, tv.video.MViT):
        _resize(model, shape)
    return model


def _resize(model: tv.video.MViT, shape: Shape) -> None:
    """Tell a network that it sees a smaller clip than it was built for; it interpolates its tables of positions."""
    frames, height, width = (size // stride for size, stride in zip(shape[1:], model.conv_proj.stride, strict=True))
    model.pos_encoding.temporal_size, model.pos_encoding.spatial_size = frames, (height, width)


def _find_outputs(model: nn.Module) -> tuple[str, ...]:
    """Return the layers that end in the classes: 1000 of ImageNet, 400 of Kinetics, 21 of VOC."""
    found = [
        name
        for name, module in model.named_modules()
        if getattr(module, "out_features", getattr(module, "out_channels", 0)) in (1000, 400, 21)
    ]
    return tuple(found)


def randomise(model: nn.Module) -> None:
    """Give every parameter and statistic a value that a wrong rule would not survive.

    Fresh ones (statistics 0 and 1, scales 1, shifts 0, layer scales 1e-6, heads 0) would hide a forgotten term.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("layer_scale"):
                parameter.uniform_(0.3, 1)
            elif parameter.numel() and not bool(parameter.any()):
                parameter.normal_(0, 0.1)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm):
                _randomise_norm(module)


def _randomise_norm(module: nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm) -> None:
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
        assert module.running_var is not None
        module.running_mean.normal_(0, 0.1)
        module.running_var.uniform_(0.5, 1.5)
    if isinstance(module.weight, torch.Tensor):
        module.weight.uniform_(0.5, 1.5)
    if isinstance(module.bias, torch.Tensor):
        module.bias.normal_(0, 0.2)
