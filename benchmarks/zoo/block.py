"""What the harness needs to know of a network that it builds itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


def draw_images(shape: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """Draw one batch of float64 images."""
    return (torch.randn(shape, dtype=torch.float64),)


def draw_tokens(shape: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """Draw one batch of token numbers below 50."""
    return (torch.randint(50, shape),)


@dataclass(frozen=True)
class Block:
    """A network of Tier B.

    Attributes:
        build: Builds it with random weights.
        shapes: Input shapes without the batch.
        outputs: Names of the layers that make the outputs.
        draw: Draws the inputs of a shape, the batch included.
    """

    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    outputs: tuple[str, ...]
    draw: Callable[[tuple[int, ...]], tuple[torch.Tensor, ...]] = draw_images
