"""What a kernel computes: shapes, tensor layouts and epilogue, all known when it is compiled."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from fxprune.annotation import IndexArray

Triple = tuple[int, int, int]
"""One value per spatial axis, depth, height, width; missing leading axes have size 1."""

Halo = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Zero cells (before, after) on each spatial axis."""

NO_HALO: Halo = ((0, 0), (0, 0), (0, 0))

CellType = Literal["float32", "float16", "bfloat16"]
"""Types of an activation's cells, in torch's words."""

CELL_BYTES: dict[CellType, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of a cell."""

LINE_CELLS = 16
"""float32 cells of a cache line."""


def spread_cells(cells: int) -> int:
    """Return the cells of a pixel or a plane to store, so that neighbours begin on cache lines in different sets.

    A vector across two lines costs two accesses. A step that is a multiple of 512 bytes puts the pixels of a tile, or
    its columns, into a few of the 64 sets of the L1; one more cache line a step spreads them. Few cells stay as they
    are.
    """
    whole = -(-cells // LINE_CELLS) * LINE_CELLS if cells > LINE_CELLS else cells
    return whole + LINE_CELLS if whole % 128 == 0 else whole


@dataclass(frozen=True)
class ConvShape:
    """Geometry of one convolution; a linear layer is a 1x1x1 convolution over a row of tokens.

    Attributes:
        batch: N.
        channels_in: I.
        channels_out: O.
        spatial_in: Input depth, height, width, without padding.
        kernel: kd, kh, kw.
        stride: One step per spatial axis.
        padding: Zero cells (before, after) per spatial axis.
        dilation: One distance per spatial axis.
        groups: Convolution groups; the weight's 2-D view has I/groups * kd * kh * kw columns.
    """

    batch: int
    channels_in: int
    channels_out: int
    spatial_in: Triple
    kernel: Triple
    stride: Triple
    padding: Halo
    dilation: Triple
    groups: int

    @property
    def spatial_out(self) -> Triple:
        """Output depth, height, width."""
        depth, height, width = (
            (size + low + high - dilation * (kernel - 1) - 1) // stride + 1
            for size, (low, high), dilation, kernel, stride in zip(
                self.spatial_in, self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return depth, height, width

    @property
    def columns(self) -> int:
        """Columns of the weight's 2-D view."""
        return self.channels_in // self.groups * prod(self.kernel)

    @property
    def pixels(self) -> int:
        """Output positions over the whole batch."""
        return self.batch * prod(self.spatial_out)

    @property
    def is_pointwise(self) -> bool:
        """Whether every output position reads exactly the input position of the same index."""
        return prod(self.kernel) == 1 and self.stride == (1, 1, 1) and self.padding == NO_HALO

    def macs(self, cells: int) -> int:
        """Multiply-adds of this layer when `cells` weights are stored."""
        return cells * self.pixels


@dataclass(frozen=True)
class Layout:
    """Where an activation [N, C, D, H, W] lies in a flat buffer.

    Attributes:
        order: "nhwc" (channels innermost), "nchw" (width innermost) or "chwn" (images innermost).
        batch: N.
        channels: Channels stored, padding channels included.
        spatial: Depth, height, width without halo.
        halo: Zero cells around each image; "nchw" buffers have none.
        cells: Type of a cell.
        spread: Whether planes begin on cache lines, with cells of no meaning behind each; only of "nchw".
    """

    order: Literal["nhwc", "nchw", "chwn"]
    batch: int
    channels: int
    spatial: Triple
    halo: Halo = NO_HALO
    cells: CellType = "float32"
    spread: bool = False

    @property
    def padded(self) -> Triple:
        """Depth, height, width with halo."""
        depth, height, width = (s + low + high for s, (low, high) in zip(self.spatial, self.halo, strict=True))
        return depth, height, width

    @property
    def numel(self) -> int:
        """Elements of the buffer."""
        return self.batch * self.channels * (self.plane if self.order == "nchw" else prod(self.padded))

    @property
    def plane(self) -> int:
        """Cells from one plane of "nchw" to the next."""
        return spread_cells(prod(self.spatial)) if self.spread else prod(self.spatial)

    @property
    def cell_bytes(self) -> int:
        """Bytes of a cell."""
        return CELL_BYTES[self.cells]

    @property
    def strides(self) -> tuple[int, int, int, int, int]:
        """Element strides of N, C, D, H, W."""
        depth, height, width = self.padded
        c = self.channels
        if self.order == "nhwc":
            return depth * height * width * c, 1, height * width * c, width * c, c
        if self.order == "chwn":
            n = self.batch
            return 1, depth * height * width * n, height * width * n, width * n, n
        return c * self.plane, self.plane, height * width, width, 1

    @property
    def origin(self) -> int:
        """Element offset of the first cell inside the halo."""
        _, _, *spatial = self.strides
        return sum(low * stride for (low, _), stride in zip(self.halo, spatial, strict=True))


@dataclass(frozen=True)
class Windows:
    """Pooling of what a layer computes: windows of an image that do not overlap and have no padding.

    Cells behind the last whole window belong to none.

    Attributes:
        kind: What becomes of a window.
        height: Lines of a window.
        width: Pixels of its lines.
    """

    kind: Literal["max", "mean"]
    height: int
    width: int

    def covered(self, spatial: Triple) -> Triple:
        """Return depth, height and width of the whole windows of images of a size."""
        depth, height, width = spatial
        return depth, height // self.height * self.height, width // self.width * self.width

    def pooled(self, spatial: Triple) -> Triple:
        """Return depth, height and width of what is left of images of a size."""
        depth, height, width = spatial
        return depth, height // self.height, width // self.width


NO_WINDOWS = Windows("max", 1, 1)
"""Every cell is written as it is."""


@dataclass(frozen=True)
class Workload:
    """One layer as a kernel sees it.

    Attributes:
        shape: The convolution.
        x: Layout of the input; its halo covers the padding unless it is "nchw".
        y: Layout of the output.
        residual: Layout of the tensor that is added before the activation.
        activation: Name as in `fxprune.operators`, or None.
        activation_args: Its numbers, e.g. the bounds of hardtanh.
        threads: Threads the kernel splits its work over.
        in_place: Whether the residual lies in the output buffer and is overwritten; only for kernels that compute
            every output once.
        bands: Bands that every image is cut into, one for each thread, each an image of `shape` and of the output (see
            `codegen.cpu.bands`); what lies above and below a band is in its neighbours. The input may be cut or not.
        windows: Pooling after the activation; the output holds one cell for every window. Only of row-lane kernels of
            images without residual.
    """

    shape: ConvShape
    x: Layout
    y: Layout
    residual: Layout | None
    activation: str | None
    activation_args: tuple[float, ...]
    threads: int
    in_place: bool = False
    bands: int = 1
    windows: Windows = NO_WINDOWS

    @property
    def input_bands(self) -> int:
        """Bands that every image of the input is cut into."""
        return self.x.batch * self.bands // self.shape.batch

    @property
    def own_residual(self) -> Layout | None:
        """Layout of a residual that is a buffer of its own."""
        return None if self.in_place else self.residual

    @property
    def first_tap(self) -> int:
        """Element offset of the first tap of the first output position; not for "nchw", which has no halo."""
        _, _, *steps = self.x.strides
        ends = zip(self.x.halo, self.shape.padding, steps, strict=True)
        return sum((halo[0] - padding[0]) * step for halo, padding, step in ends)


def column_offsets(columns: IndexArray, group: int, work: Workload, channel_map: IndexArray | None) -> IndexArray:
    """Turn columns of the weight's 2-D view into element offsets from the first tap of an output position.

    Args:
        columns: Column indices, [C].
        group: The convolution group whose input channels they count from.
        work: The layer; its input layout says where channels and taps lie.
        channel_map: Position of every input channel in the buffer, [I], or None where channels are in order.

    Returns:
        Offsets in elements, [C], int32.
    """
    shape, strides = work.shape, work.x.strides
    per_group = shape.channels_in // shape.groups
    channel, depth, height, width = np.unravel_index(columns, (per_group, *shape.kernel))
    channel = channel + group * per_group
    if channel_map is not None:
        channel = channel_map[channel].astype(np.int64)
    taps = (depth, height, width)
    offset = channel * strides[1]
    for tap, dilation, stride in zip(taps, shape.dilation, strides[2:], strict=True):
        offset = offset + tap * dilation * stride
    return offset.astype(np.int32)
