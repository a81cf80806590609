"""The layers that are measured one by one: ResNet-50's and VGG-16's, by what limits them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from fxprune.annotation import RowGroup, RowGroupPattern
from fxprune.codegen.cuda.costs import floor_us, memory_us
from fxprune.codegen.cuda.kernel import CudaKernel, make_kernel
from fxprune.codegen.cuda.schedules import find_candidates
from fxprune.codegen.cuda.target import CudaTarget, Precision
from fxprune.codegen.workload import NO_HALO, CellType, ConvShape, Halo, Layout, Workload

Kind = Literal["float32", "tf32", "float16", "bfloat16"]
"""What is computed with; TF32 is float32 rounded on its way to the tensor cores."""

TYPES: dict[Kind, torch.dtype] = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""What can be measured, and the type of its weights and activations."""


def precision_of(kind: Kind) -> Precision:
    """Return the precision of float32 that a kind stands for."""
    return "tf32" if kind == "tf32" else "ieee"


@dataclass(frozen=True)
class LayerCase:
    """One layer at one sparsity.

    Attributes:
        name: Short name.
        shape: Its geometry.
        sparsity: Share of the weights that is pruned.
        rows: Height of the row groups.
        kind: What it is computed with.
    """

    name: str
    shape: ConvShape
    sparsity: float
    rows: int
    kind: Kind = "float32"

    @property
    def label(self) -> str:
        """One line for the table."""
        return f"{self.name}, {self.kind}, batch {self.shape.batch}, sparsity {self.sparsity}, groups of {self.rows}"

    @property
    def type(self) -> torch.dtype:
        """The type of weights and activations."""
        return TYPES[self.kind]

    @property
    def cells(self) -> CellType:
        """The same in a kernel's words."""
        return "float32" if self.kind == "tf32" else self.kind

    def workload(self) -> Workload:
        """Place the tensors as kernels want them."""
        shape = self.shape
        x = Layout("chwn", shape.batch, shape.channels_in, shape.spatial_in, shape.padding, self.cells)
        y = Layout("chwn", shape.batch, shape.channels_out, shape.spatial_out, cells=self.cells)
        return Workload(shape, x, y, None, "relu", (), 1)

    def pattern(self) -> RowGroupPattern:
        """Draw row groups of neighbouring rows with random columns; the same case gives the same ones."""
        generator, shape = np.random.default_rng(zlib.crc32(self.label.encode())), self.shape
        count = max(1, round((1 - self.sparsity) * shape.columns))
        groups = []
        for first in range(0, shape.channels_out, self.rows):
            rows = np.arange(first, min(first + self.rows, shape.channels_out), dtype=np.int32)
            columns = np.sort(generator.choice(shape.columns, count, replace=False)).astype(np.int32)
            groups.append(RowGroup(rows, columns))
        return RowGroupPattern((shape.channels_out, shape.columns), tuple(groups))

    def weight(self) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """Draw the weight's 2-D view, rounded to the case's type; what the pattern leaves out is zero."""
        generator, shape = np.random.default_rng(zlib.crc32(self.label.encode()) + 1), self.shape
        weight = generator.standard_normal((shape.channels_out, shape.columns)).astype(np.float32)
        kept = np.where(self.pattern().covered(), weight / np.sqrt(shape.columns), 0).astype(np.float32)
        return np.asarray(torch.from_numpy(kept).to(self.type).float().numpy())

    def kernels(self, target: CudaTarget, count: int) -> list[tuple[CudaKernel, float]]:
        """Return the best kernels by prediction, each with its predicted microseconds."""
        work, pattern, weight = self.workload(), self.pattern(), self.weight()
        bias = self.bias().float().numpy()
        best = find_candidates(work, pattern, replace(target, precision=precision_of(self.kind)))[:count]
        return [(make_kernel(work, c.schedule, weight, pattern, bias), c.predicted_us) for c in best]

    def bias(self) -> torch.Tensor:
        """Return the bias, [O]."""
        return torch.linspace(-1, 1, self.shape.channels_out).to(self.type)

    def floors_us(self, target: CudaTarget) -> dict[str, float]:
        """Return the least times by bytes, and by the larger of bytes and multiply-adds, microseconds."""
        stored, target = self.pattern().stored, replace(target, precision=precision_of(self.kind))
        return {"bytes": memory_us(self.workload(), stored, target), "all": floor_us(self.workload(), stored, target)}


def _conv(batch: int, channels: tuple[int, int], size: int, kernel: int, stride: int = 1) -> ConvShape:
    around: Halo = (NO_HALO[0], (kernel // 2, kernel // 2), (kernel // 2, kernel // 2))
    image = (1, size, size)
    return ConvShape(batch, *channels, image, (1, kernel, kernel), (1, stride, stride), around, (1, 1, 1), 1)


def draw_cases(
    batch: int, sparsities: tuple[float, ...], heights: tuple[int, ...], kind: Kind = "float32"
) -> Iterator[LayerCase]:
    """Yield the cases of a batch size.

    Args:
        batch: Images.
        sparsities: Shares of pruned weights.
        heights: Heights of row groups.
        kind: What they are computed with.
    """
    shapes = {
        "3x3 64 56": _conv(batch, (64, 64), 56, 3),
        "3x3 128 28": _conv(batch, (128, 128), 28, 3),
        "3x3 256 14": _conv(batch, (256, 256), 14, 3),
        "3x3 512 7": _conv(batch, (512, 512), 7, 3),
        "3x3 s2 256 28": _conv(batch, (256, 256), 28, 3, 2),
        "3x3 512 28": _conv(batch, (512, 512), 28, 3),
        "1x1 256-64 56": _conv(batch, (256, 64), 56, 1),
        "1x1 512-128 28": _conv(batch, (512, 128), 28, 1),
        "1x1 256-1024 14": _conv(batch, (256, 1024), 14, 1),
        "1x1 2048-512 7": _conv(batch, (2048, 512), 7, 1),
        "5x5 96 28": _conv(batch, (96, 96), 28, 5),
    }
    for name, shape in shapes.items():
        for sparsity in sparsities:
            for rows in heights:
                yield LayerCase(name, shape, sparsity, rows, kind)


def draw_input(case: LayerCase, device: torch.device) -> torch.Tensor:
    """Draw the input, [N, C, H, W], channels-last."""
    generator = torch.Generator().manual_seed(zlib.crc32(case.label.encode()))
    shape = case.shape
    x = torch.randn(shape.batch, shape.channels_in, *shape.spatial_in[1:], generator=generator)
    return x.to(device, case.type, memory_format=torch.channels_last)
