"""The network of the experiment: a stem and three convolutions, the last two wide enough for groups of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

_STEM = 16
_CLASSES = 10
_LARGE_SIDE = 16
"""From this many pixels on the stem halves the image."""


class TicketNet(nn.Module):
    """Stem, then 3x3 convolutions with batch norm and ReLU, pooling between them, global average, linear head."""

    def __init__(self, widths: Sequence[int], side: int, channels: int = 1) -> None:
        """Make the network.

        Args:
            widths: Output channels of the convolutions behind the stem.
            side: Pixels of a side of the images.
            channels: Channels of the images.
        """
        super().__init__()
        stride = 2 if side >= _LARGE_SIDE else 1
        self.stem = _make_block(channels, _STEM, stride)
        inputs = (_STEM, *widths[:-1])
        blocks = [_make_block(before, after, 1) for before, after in zip(inputs, widths, strict=True)]
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(widths[-1], _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images [N, C, H, W]; returns scores [N, 10]."""
        x = self.stem(x)
        for index, block in enumerate(self.blocks):
            x = block(torch.max_pool2d(x, 2) if index else x)
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores

    def prefer_channels_last(self) -> Self:
        """Store the weights in the order in which training on a CPU is fastest."""
        return self.to(memory_format=torch.channels_last)


def _make_block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
