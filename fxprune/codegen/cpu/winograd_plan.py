"""Sizes of a Winograd kernel (`cpu.winograd`), which layers it computes, and its transformed weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fxprune.annotation import IndexArray
from fxprune.codegen.format import Float32Array
from fxprune.codegen.minimal_filtering import MOST_PRODUCTS, Filtering, minimal_filtering
from fxprune.codegen.workload import ConvShape, Workload


@dataclass(frozen=True)
class WinogradSchedule:
    """Options of one Winograd kernel.

    Attributes:
        lanes: float32 lanes of a vector.
        vectors: Vectors of rows in a tile, q; a block has lanes * vectors rows.
        outputs: Neighbouring outputs of a line that are computed at once, m.
        tiles: Tiles of m outputs that share the weights, at most.
        lines: Lines of the output whose input is transformed at once.
        split: What the threads share: "pixels", which are parts of the lines, or "blocks".
    """

    lanes: int
    vectors: int
    outputs: int
    tiles: int
    lines: int
    split: Literal["pixels", "blocks"]

    @property
    def height(self) -> int:
        """Rows of a block, R."""
        return self.lanes * self.vectors

    def __str__(self) -> str:
        """Short form for the report."""
        return f"winograd {self.lanes}x{self.vectors} tile {self.lines}x{self.tiles}x{self.outputs} {self.split}"


def supports(shape: ConvShape) -> bool:
    """Whether a layer has lines of taps to save products on: an image, one group, two taps or more a phase."""
    flat = shape.spatial_in[0] == shape.kernel[0] == 1 and shape.padding[0] == (0, 0)
    return flat and shape.groups == 1 and shape.dilation[2] == 1 and phase_taps(shape)[0] >= 2


def phase_taps(shape: ConvShape) -> list[int]:
    """Count the taps of every phase of the stride along the width; phases without taps are left out."""
    taps, stride = shape.kernel[2], shape.stride[2]
    return [-(-(taps - phase) // stride) for phase in range(min(stride, taps))]


def fits(shape: ConvShape, schedule: WinogradSchedule) -> bool:
    """Whether a supported layer can be computed so: tiles within a line, few enough products."""
    _, height, width = shape.spatial_out
    products = phase_products(shape, schedule.outputs)[0]
    return schedule.outputs <= width and schedule.lines <= height and products <= MOST_PRODUCTS


@dataclass(frozen=True)
class WinogradPlan:
    """Sizes of one kernel.

    Attributes:
        filtering: The matrices.
        products: Products of every phase, [stride].
        across: Tiles of a line.
        tiles: Tiles that share the weights.
        units: Parts of the lines over the batch.
        lines_in: Lines of the input that a part reads.
        channels: Channels of the input buffer, up to the last one that is read.
        blocks: Blocks of rows.
        rows: Rows of all blocks, those of padding included.
    """

    filtering: Filtering
    products: tuple[int, ...]
    across: int
    tiles: int
    units: int
    lines_in: int
    channels: int
    blocks: int
    rows: int

    @property
    def depth(self) -> int:
        """Products of all phases."""
        return sum(self.products)

    @property
    def scratch(self) -> int:
        """Scratch cells of a thread."""
        return self.lines_in * self.across * self.depth * self.channels


def plan_winograd(work: Workload, schedule: WinogradSchedule, channels: int) -> WinogradPlan:
    """Return the sizes of a kernel.

    Args:
        work: The layer.
        schedule: Options of the kernel.
        channels: Channels of the input buffer, up to the last one that is read.
    """
    shape = work.shape
    across, blocks = -(-shape.spatial_out[2] // schedule.outputs), count_blocks(shape, schedule.height)
    return WinogradPlan(
        filtering=minimal_filtering(schedule.outputs, phase_taps(shape)[0]),
        products=phase_products(shape, schedule.outputs),
        across=across,
        tiles=min(schedule.tiles, across),
        units=count_parts(shape, schedule.lines),
        lines_in=lines_read(shape, schedule.lines),
        channels=channels,
        blocks=blocks,
        rows=blocks * schedule.height,
    )


def count_blocks(shape: ConvShape, height: int) -> int:
    """Count the blocks of so many rows; the last one may hold rows of padding."""
    return -(-shape.channels_out // height)


def count_parts(shape: ConvShape, lines: int) -> int:
    """Count the parts of so many output lines over the batch; the last of an image may overlap the one before it."""
    return shape.batch * -(-shape.spatial_out[1] // lines)


def lines_read(shape: ConvShape, lines: int) -> int:
    """Count the input lines that neighbouring output lines read."""
    return (lines - 1) * shape.stride[1] + (shape.kernel[1] - 1) * shape.dilation[1] + 1


def count_tiles(shape: ConvShape, outputs: int) -> int:
    """Count the tiles of so many outputs over the batch; a last one that overlaps the one before it included."""
    _, height, width = shape.spatial_out
    return shape.batch * height * -(-width // outputs)


def read_positions(shape: ConvShape, input_map: IndexArray | None) -> IndexArray:
    """Return the position of every input channel in its buffer, [I]."""
    return np.arange(shape.channels_in, dtype=np.int32) if input_map is None else input_map.astype(np.int32)


def scratch_cells(work: Workload, schedule: WinogradSchedule, positions: IndexArray) -> int:
    """Count the scratch cells that a kernel needs over all threads, float32."""
    return work.threads * plan_winograd(work, schedule, int(positions.max()) + 1).scratch


def phase_products(shape: ConvShape, outputs: int) -> tuple[int, ...]:
    """Return the products of a tile for every phase of a line; plain sums take outputs times taps in all."""
    taps = phase_taps(shape)
    return tuple(outputs + taps[0] - 1 - (count < taps[0]) for count in taps)


def pack_winograd(
    work: Workload, schedule: WinogradSchedule, weight: Float32Array, bias: Float32Array
) -> tuple[Float32Array, Float32Array]:
    """Return the transformed weight, [blocks, kh, I, products, R], and the bias, [blocks * R], both flat.

    Args:
        work: Shapes and layouts.
        schedule: Options of the kernel.
        weight: The 2-D view, [O, I * kh * kw].
        bias: [O].
    """
    shape, plan = work.shape, plan_winograd(work, schedule, work.shape.channels_in)
    stride, taps = shape.stride[2], len(plan.filtering.taps[0])
    spare = plan.rows - shape.channels_out
    rows = np.pad(weight, ((0, spare), (0, 0)))
    lines = rows.reshape(plan.blocks, schedule.height, shape.channels_in, *shape.kernel[1:])
    matrix = np.array(plan.filtering.taps, dtype=np.float64)
    parts = []
    for phase, products in enumerate(plan.products):
        own = lines[..., phase::stride].astype(np.float64)
        padded = np.pad(own, [(0, 0)] * 4 + [(0, taps - own.shape[-1])])
        parts.append((padded @ matrix.T)[..., :products])
    packed = np.concatenate(parts, axis=-1).transpose(0, 3, 2, 4, 1)
    return np.ascontiguousarray(packed, dtype=np.float32).reshape(-1), np.pad(bias, (0, spare)).astype(np.float32)
