"""UNet, YOLO's C2f block and EDSR, with the arithmetic of the originals and small sizes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """Return two convolutions, each with norm and relu."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Down by pooling, up by transposed convolutions, joined by concats (Ronneberger et al., arXiv 1505.04597)."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        sizes = [width * 2**level for level in range(4)]
        self.down = nn.ModuleList(
            double_conv(inputs, outputs) for inputs, outputs in zip([3, *sizes[:-1]], sizes, strict=True)
        )
        self.up = nn.ModuleList(UpJoin(size) for size in reversed(sizes[:-1]))
        self.head = nn.Conv2d(width, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return class scores of every pixel."""
        kept: list[torch.Tensor] = []
        for level, layer in enumerate(self.down):
            x = layer(F.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for up, other in zip(self.up, reversed(kept[:-1]), strict=True):
            x = up(x, other)
        scores: torch.Tensor = self.head(x)
        return scores


class UpJoin(nn.Module):
    """A transposed convolution, beside what was kept on the way down."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.join = double_conv(2 * size, size)
        self.up = nn.ConvTranspose2d(2 * size, size, 2, stride=2)

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return `size` channels as large as `other`, [N, size, H, W]."""
        x = self.up(x)
        bottom, right = other.shape[-2] - x.shape[-2], other.shape[-1] - x.shape[-1]
        x = F.pad(x, [right // 2, right - right // 2, bottom // 2, bottom - bottom // 2])
        joined: torch.Tensor = self.join(torch.cat([other, x], 1))
        return joined


class ConvUnit(nn.Sequential):
    """Convolution, norm, silu: YOLO's unit."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False),
            nn.BatchNorm2d(outputs, eps=1e-3),
            nn.SiLU(inplace=True),
        )


class C2fBottleneck(nn.Module):
    """Two 3x3 units and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = ConvUnit(width, width, 3), ConvUnit(width, width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block."""
        y: torch.Tensor = x + self.cv2(self.cv1(x))
        return y


class C2f(nn.Module):
    """Chunk in two, send the second half through bottlenecks, join every stage (YOLOv8)."""

    def __init__(self, inputs: int, outputs: int, count: int) -> None:
        super().__init__()
        half = outputs // 2
        self.cv1, self.cv2 = ConvUnit(inputs, outputs), ConvUnit((2 + count) * half, outputs)
        self.m = nn.ModuleList(C2fBottleneck(half) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block."""
        stages = list(self.cv1(x).chunk(2, 1))
        for block in self.m:
            stages.append(block(stages[-1]))
        y: torch.Tensor = self.cv2(torch.cat(stages, 1))
        return y


class YoloNeck(nn.Module):
    """A stem, two C2f blocks, fast pyramid pooling and a head."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.first = ConvUnit(3, width, 3, 2), C2f(width, 2 * width, 2)
        self.pool1, self.pool2 = ConvUnit(2 * width, width), ConvUnit(4 * width, 2 * width)
        self.second, self.head = C2f(4 * width, 2 * width, 1), nn.Conv2d(2 * width, 9, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a map of predictions."""
        x = self.first(self.stem(x))
        pools = [self.pool1(x)]
        for _ in range(3):
            pools.append(F.max_pool2d(pools[-1], 5, 1, 2))
        small = self.pool2(F.max_pool2d(torch.cat(pools, 1), 2))
        up = F.interpolate(small, size=x.shape[-2:], mode="nearest")
        y: torch.Tensor = self.head(self.second(torch.cat([up, x], 1)))
        return y


class ResidualBlock(nn.Module):
    """Two convolutions without norm, scaled, and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block."""
        y: torch.Tensor = x + self.conv2(self.conv1(x).relu()) * 0.1
        return y


class Edsr(nn.Module):
    """Residual blocks without norm, then pixel shuffle twice (Lim et al., arXiv 1707.02921)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(width) for _ in range(3)))
        self.last = nn.Conv2d(width, width, 3, padding=1)
        self.up1, self.up2 = nn.Conv2d(width, 4 * width, 3, padding=1), nn.Conv2d(width, 4 * width, 3, padding=1)
        self.head = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return an image four times as large."""
        x = self.first(x)
        x = x + self.last(self.body(x))
        x = F.pixel_shuffle(self.up2(F.pixel_shuffle(self.up1(x), 2)), 2)
        y: torch.Tensor = self.head(x)
        return y
