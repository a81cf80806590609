"""Kernels checked against torch in float64: shapes, patterns, buffers full of NaN, and the comparison."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from fxprune.annotation import IndexArray, RowGroup, RowGroupPattern
from fxprune.codegen.build import Library
from fxprune.codegen.cpu.bands import cut
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.format import Float32Array, packed_lanes
from fxprune.codegen.kernel import BoundKernel, LayerKernel, make_kernel
from fxprune.codegen.schedules import Schedule
from fxprune.codegen.target import CpuTarget, parse_target
from fxprune.codegen.workload import NO_HALO, NO_WINDOWS, ConvShape, Halo, Layout, Triple, Windows, Workload
from fxprune.operators import apply_activation

TOLERANCE = 1e-5
"""Largest error, as a share of the largest output."""

Split = Literal["pixels", "blocks"]
SPLITS: tuple[Split, Split] = ("pixels", "blocks")

_GUARD = 64
"""Cells before and after every buffer that no kernel may write."""


def triple(values: int | Sequence[int]) -> Triple:
    """Spell out one value per spatial axis; missing leading axes get 1."""
    given = (values, values) if isinstance(values, int) else tuple(values)
    depth, height, width = (1,) * (3 - len(given)) + given
    return depth, height, width


def halo(*pairs: tuple[int, int]) -> Halo:
    """Spell out (before, after) of every spatial axis; missing leading axes have none."""
    depth, height, width = ((0, 0),) * (3 - len(pairs)) + pairs
    return depth, height, width


def conv(
    channels_in: int,
    channels_out: int,
    size: Sequence[int],
    kernel: int | Sequence[int] = 1,
    *,
    batch: int = 1,
    stride: int | Sequence[int] = 1,
    padding: Halo | int = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> ConvShape:
    """Build a convolution over 1, 2 or 3 axes; a number of padding cells goes all around the axes that are there."""
    around = halo(*[(padding, padding)] * len(size)) if isinstance(padding, int) else padding
    spatial, steps = (triple(size), triple(kernel), triple(stride)), triple(dilation)
    return ConvShape(batch, channels_in, channels_out, *spatial, around, steps, groups)


def linear(tokens: int, features_in: int, features_out: int) -> ConvShape:
    """Build a linear layer over a row of tokens."""
    return conv(features_in, features_out, (1, 1, tokens), (1, 1, 1))


def draw_pattern(
    shape: ConvShape,
    heights: Sequence[int] = (16,),
    density: float = 0.3,
    *,
    columns: int | None = None,
    scattered: bool = False,
    left_out: int = 0,
) -> RowGroupPattern:
    """Draw row groups that do not cross a convolution group.

    Args:
        shape: The layer.
        heights: Heights of the groups, taken in turn.
        density: Share of the columns in each group.
        columns: Columns of each group instead.
        scattered: Whether rows of a group are random rows.
        left_out: Rows at the end of each convolution group without any cell.
    """
    generator = np.random.default_rng(5)
    count = max(1, round(density * shape.columns)) if columns is None else columns
    per_group = shape.channels_out // shape.groups
    found: list[RowGroup] = []
    for conv_group in range(shape.groups):
        rows = np.arange(per_group - left_out)
        order = (generator.permutation(rows) if scattered else rows) + conv_group * per_group
        start = 0
        while start < order.size:
            height = heights[len(found) % len(heights)]
            chosen = generator.choice(shape.columns, count, replace=False)
            found.append(RowGroup(np.sort(order[start : start + height]), np.sort(chosen)))
            start += height
    return RowGroupPattern((shape.channels_out, shape.columns), tuple(found))


def full_pattern(shape: ConvShape) -> RowGroupPattern:
    """Store every cell: one group for each convolution group."""
    return draw_pattern(shape, (shape.channels_out // shape.groups,), columns=shape.columns)


def empty_pattern(shape: ConvShape) -> RowGroupPattern:
    """Store no cell."""
    return RowGroupPattern((shape.channels_out, shape.columns), ())


def single_cells(shape: ConvShape) -> RowGroupPattern:
    """Store one cell a row: row r of a convolution group holds column r, so every column has its own row."""
    rows = range(shape.channels_out)
    assert shape.channels_out == shape.groups * shape.columns
    groups = tuple(RowGroup(np.array([row]), np.array([row % shape.columns])) for row in rows)
    return RowGroupPattern((shape.channels_out, shape.columns), groups)


@dataclass(frozen=True)
class Case:
    """One kernel to build and to check.

    Attributes:
        shape: The layer.
        schedule: Options of the kernel.
        pattern: Row groups of its weight.
        threads: Threads the kernel splits its work over.
        bias: Whether the layer has a bias.
        residual: Whether a tensor is added before the activation.
        activation: Its name, or None.
        activation_args: Its numbers.
        x_halo: Halo of the input buffer; None = the padding for row lanes.
        y_halo: Halo of the output buffer.
        residual_halo: Halo of the residual's buffer.
        negative: Whether every weight is negative.
        scale: Factor on the input.
        group_order: Whether output channels lie in the order of the blocks.
        in_place: Whether the residual is overwritten.
        x_spread: Whether planes of the input begin on cache lines.
        y_spread: Whether those of the output do.
        residual_spread: Whether those of the residual do; None = as those of the output.
        x_bands: Whether the input lies in bands, one for each thread.
        y_bands: Whether the output and the residual do.
        windows: Pooling after the activation.
    """

    shape: ConvShape
    schedule: Schedule
    pattern: RowGroupPattern
    threads: int = 2
    bias: bool = True
    residual: bool = False
    activation: str | None = None
    activation_args: tuple[float, ...] = ()
    x_halo: Halo | None = None
    y_halo: Halo = NO_HALO
    residual_halo: Halo = NO_HALO
    negative: bool = False
    scale: float = 1.0
    group_order: bool = False
    in_place: bool = False
    x_spread: bool = True
    y_spread: bool = True
    residual_spread: bool | None = None
    x_bands: bool = False
    y_bands: bool = False
    windows: Windows = NO_WINDOWS

    def workload(self) -> Workload:
        """Place the tensors as the family of the schedule wants them."""
        shape = self.shape
        if not isinstance(self.schedule, PixelsSchedule):
            channels = packed_lanes(self.pattern, self.schedule.height) if self.group_order else shape.channels_out
            around = shape.padding if self.x_halo is None else self.x_halo
            x = Layout("nhwc", shape.batch, shape.channels_in, shape.spatial_in, around)
            y = Layout("nhwc", shape.batch, channels, self.windows.pooled(shape.spatial_out), self.y_halo)
        else:
            x = Layout("nchw", shape.batch, shape.channels_in, shape.spatial_in, spread=self.x_spread)
            y = Layout("nchw", shape.batch, shape.channels_out, shape.spatial_out, spread=self.y_spread)
        added = replace(y, channels=shape.channels_out, halo=self.residual_halo) if self.residual else None
        if added is not None and self.residual_spread is not None:
            added = replace(added, spread=self.residual_spread)
        args = self.activation_args
        work = Workload(shape, x, y, added, self.activation, args, self.threads, self.in_place, windows=self.windows)
        return cut(work, x=self.x_bands, y=self.y_bands)


def view(buffer: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Return the inside of a flat buffer, [N, C, D, H, W]."""
    size = (layout.batch, layout.channels, *layout.spatial)
    return buffer.as_strided(size, layout.strides, buffer.storage_offset() + layout.origin)


def in_bands(tensor: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Cut the lines of [N, C, D, H, W] into as many images as the layout has."""
    bands = layout.batch // len(tensor)
    return torch.cat([band for image in tensor.chunk(len(tensor)) for band in image.chunk(bands, 3)])


def from_bands(images: torch.Tensor, batch: int) -> torch.Tensor:
    """Join bands to whole images, the opposite of `in_bands`."""
    return torch.cat([torch.cat(bands.chunk(len(bands)), 3) for bands in images.chunk(batch)])


def poisoned(cells: int) -> torch.Tensor:
    """Return a buffer of NaN with guards before and after it."""
    return torch.full((cells + 2 * _GUARD,), torch.nan)[_GUARD : _GUARD + cells]


def guards_are_intact(buffer: torch.Tensor) -> bool:
    """Whether nothing was written around a buffer made by `poisoned`."""
    storage = torch.empty(0).set_(buffer.untyped_storage())
    return bool(storage[:_GUARD].isnan().all() and storage[-_GUARD:].isnan().all())


def place(tensor: torch.Tensor, layout: Layout, zeros: Halo = NO_HALO) -> torch.Tensor:
    """Copy a tensor into a poisoned buffer; as many halo cells as `zeros` says are zero, the others stay NaN."""
    buffer = poisoned(layout.numel)
    nearest = Layout(layout.order, layout.batch, layout.channels, layout.spatial, zeros)
    corner = sum(
        (wide - near) * stride
        for (wide, _), (near, _), stride in zip(layout.halo, zeros, layout.strides[2:], strict=True)
    )
    size = (layout.batch, layout.channels, *nearest.padded)
    buffer.as_strided(size, layout.strides, buffer.storage_offset() + corner).zero_()
    view(buffer, layout).copy_(in_bands(tensor, layout))
    return buffer


@dataclass(frozen=True, eq=False)
class Tensors:
    """Random numbers of one case: input, residual [N, C, D, H, W], weight [O, K] and bias [O]."""

    x: torch.Tensor
    residual: torch.Tensor | None
    weight: Float32Array
    bias: Float32Array | None

    def reference(self, case: Case) -> torch.Tensor:
        """Compute the layer in float64."""
        shape = case.shape
        kept = np.where(case.pattern.covered(), self.weight, 0)
        weight = torch.from_numpy(kept).double().reshape(shape.channels_out, -1, *shape.kernel)
        bias = None if self.bias is None else torch.from_numpy(self.bias).double()
        x = F.pad(self.x.double(), [size for pair in reversed(shape.padding) for size in pair])
        y = F.conv3d(x, weight, bias, shape.stride, 0, shape.dilation, shape.groups)
        y = y if self.residual is None else y + self.residual.double()
        y = apply_activation(y, case.activation, case.activation_args)
        pool = F.max_pool3d if case.windows.kind == "max" else F.avg_pool3d
        return pool(y, (1, case.windows.height, case.windows.width))


def draw_tensors(case: Case, name: str) -> Tensors:
    """Draw the numbers of a case; the same name gives the same numbers."""
    shape, seed = case.shape, zlib.crc32(name.encode())
    torch_seed, generator = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    weight = generator.standard_normal((shape.channels_out, shape.columns)).astype(np.float32)
    bias = generator.standard_normal(shape.channels_out).astype(np.float32)
    x = torch.randn(shape.batch, shape.channels_in, *shape.spatial_in, generator=torch_seed) * case.scale
    residual = torch.randn(shape.batch, shape.channels_out, *shape.spatial_out, generator=torch_seed)
    return Tensors(
        x,
        residual if case.residual else None,
        -np.abs(weight) if case.negative else weight,
        bias if case.bias else None,
    )


def make(case: Case, tensors: Tensors, input_map: IndexArray | None = None) -> LayerKernel:
    """Pack a case."""
    return make_kernel(
        case.workload(),
        case.schedule,
        np.where(case.pattern.covered(), tensors.weight, np.float32(0)),
        case.pattern,
        tensors.bias,
        input_map=input_map,
        group_order=case.group_order,
    )


@dataclass(frozen=True, eq=False)
class Buffers:
    """What changes from call to call, flat: the input and the residual placed, output and scratch poisoned.

    A kernel that works in place finds its residual in the output.
    """

    x: torch.Tensor
    y: torch.Tensor
    residual: torch.Tensor | None
    scratch: torch.Tensor | None

    @classmethod
    def of(cls, kernel: LayerKernel, tensors: Tensors) -> Buffers:
        """Place the tensors of a case."""
        work = kernel.work
        x = place(tensors.x, work.x, work.shape.padding if work.x.order == "nhwc" else NO_HALO)
        added = work.residual is not None and tensors.residual is not None
        residual = place(tensors.residual, work.residual) if added else None  # type: ignore[arg-type]
        scratch = poisoned(kernel.scratch_cells) if kernel.scratch_cells else None
        if work.in_place:
            assert residual is not None
            return cls(x, residual, None, scratch)
        return cls(x, poisoned(work.y.numel), residual, scratch)


def run_kernel(library: Library, name: str, kernel: LayerKernel, tensors: Tensors) -> torch.Tensor:
    """Run a kernel with poisoned output and scratch; checks what it wrote and returns the output buffer."""
    buffers = Buffers.of(kernel, tensors)
    y, scratch = buffers.y, buffers.scratch
    BoundKernel(library[name], kernel, buffers.x, y, buffers.residual, scratch).run()
    assert guards_are_intact(y), "written outside the output"
    assert scratch is None or guards_are_intact(scratch), "written outside the scratch"
    check_halo(y, kernel.work.y)
    return y


def check_halo(y: torch.Tensor, layout: Layout) -> None:
    """Check that an output's halo is zero; planes have none, and any cells behind them."""
    if layout.order == "nchw":
        return
    outside = torch.ones(layout.numel, dtype=torch.bool)
    view(outside, layout).fill_(False)
    assert bool((y[outside] == 0).all()), "the halo is not zero"


def in_order(kernel: LayerKernel, y: torch.Tensor) -> torch.Tensor:
    """Return the inside of an output buffer with its channels in order, [N, O, D, H, W]."""
    found = from_bands(view(y, kernel.work.y), kernel.work.shape.batch // kernel.work.bands)
    if kernel.channel_map is None:
        return found[:, : kernel.work.shape.channels_out]
    return found[:, torch.from_numpy(kernel.channel_map).long()]


def largest_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest output; NaN where a cell was not written."""
    return float((found.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


class Suite:
    """Many cases built into one library."""

    def __init__(self, cases: Mapping[str, Case], target: CpuTarget | None = None) -> None:
        self.cases = dict(cases)
        self.tensors = {name: draw_tensors(case, name) for name, case in cases.items()}
        self.kernels = {name: make(case, self.tensors[name]) for name, case in cases.items()}
        scripts = {name: kernel.script(name) for name, kernel in self.kernels.items()}
        self.library = Library(scripts, target or parse_target("cpu", 2))

    def run(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Run a case; returns its output and torch's, [N, O, D, H, W]."""
        case, kernel, tensors = self.cases[name], self.kernels[name], self.tensors[name]
        return in_order(kernel, run_kernel(self.library, name, kernel, tensors)), tensors.reference(case)

    def check(self, name: str) -> None:
        """Compare a case with torch."""
        found, wanted = self.run(name)
        assert found.shape == wanted.shape
        error = largest_error(found, wanted)
        assert error <= TOLERANCE, f"{name}: error {error} with {self.cases[name].schedule}"
