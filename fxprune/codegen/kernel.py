"""One layer and one schedule made into text and arrays, and the bound call that runs them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
import tvm_ffi
from numpy.typing import NDArray

from fxprune.annotation import IndexArray, RowGroupPattern
from fxprune.codegen.cpu import pixel_tiles, pixels, row_walk, rows
from fxprune.codegen.cpu.ahead import ahead_cells
from fxprune.codegen.cpu.depthwise import DepthwiseSchedule, build_depthwise_kernel, pack_depthwise
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.cpu.planes import plane_offsets
from fxprune.codegen.cpu.row_tile import RowsProblem
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.cpu.winograd import build_winograd_kernel
from fxprune.codegen.cpu.winograd_plan import WinogradSchedule, pack_winograd, read_positions, scratch_cells
from fxprune.codegen.format import Float32Array, PackedWeight, pack
from fxprune.codegen.memory import Pool, rounded
from fxprune.codegen.runs import first_channels
from fxprune.codegen.schedules import Schedule, stored_pattern
from fxprune.codegen.shares import cut_units
from fxprune.codegen.workload import NO_WINDOWS, Workload, column_offsets
from fxprune.errors import CodegenError

_LARGEST_INDEX = 2**31 - 1


@dataclass(frozen=True, eq=False)
class LayerKernel:
    """A layer's kernel before it is built.

    Attributes:
        work: Shapes and layouts.
        schedule: Options.
        packed: The packed weight; None for depthwise and Winograd kernels, whose taps are stored whole.
        arrays: Arguments between the input and the output, in the kernel's order.
        scratch_cells: float32 cells of scratch that the kernel needs; 0 = it takes none.
        channel_map: Position of each output channel in the output buffer, [O]; None = in order.
        cut: First unit (a tile of a block, in the order of `shares.list_units`) of every thread, [threads + 1]; None
            without a packed weight.
    """

    work: Workload
    schedule: Schedule
    packed: PackedWeight | None
    arrays: tuple[NDArray[np.generic], ...]
    scratch_cells: int
    channel_map: IndexArray | None
    cut: IndexArray | None
    _rows_problem: RowsProblem | None

    @property
    def pool_cells(self) -> int:
        """4-byte cells that the arrays take in a pool."""
        return sum(rounded(int(array.size)) for array in self.arrays)

    @property
    def size_bytes(self) -> int:
        """Bytes of the stored weight and its indices."""
        return sum(array.nbytes for array in self.arrays) if self.packed is None else self.packed.size_bytes

    @property
    def computed_pixels(self) -> int:
        """Output positions that the kernel computes, wasted ones included."""
        if isinstance(self.schedule, RowsSchedule):
            return row_walk.computed_pixels(self.work, self.schedule)
        assert isinstance(self.schedule, PixelsSchedule)
        return pixel_tiles.computed_pixels(self.work, self.schedule)

    def script(self, name: str) -> str:
        """Return the TVMScript of the function under a global symbol."""
        if isinstance(self.schedule, DepthwiseSchedule):
            return build_depthwise_kernel(name, self.work, self.schedule)
        if isinstance(self.schedule, WinogradSchedule):
            return build_winograd_kernel(name, self.work, self.schedule, int(self.arrays[2].max()) + 1)
        assert self.packed is not None
        if isinstance(self.schedule, RowsSchedule):
            assert self._rows_problem is not None
            return rows.build_rows_kernel(name, self.work, self._rows_problem, self.schedule)
        problem = pixels.PixelsProblem(self.packed.blocks // self.packed.parts, self.packed.parts)
        return pixels.build_pixels_kernel(name, self.work, problem, self.schedule)


def group_channel_map(packed: PackedWeight) -> IndexArray:
    """Return the position of every output row where rows lie in the order of the blocks, padding included, [O]."""
    positions = np.empty(packed.pattern.shape[0], dtype=np.int32)
    lanes = np.flatnonzero(packed.rows >= 0).astype(np.int32)
    positions[packed.rows[lanes]] = lanes
    return positions


def make_kernel(
    work: Workload,
    schedule: Schedule,
    weight: Float32Array,
    pattern: RowGroupPattern,
    bias: Float32Array | None,
    *,
    input_map: IndexArray | None = None,
    group_order: bool = False,
) -> LayerKernel:
    """Pack a layer for one schedule.

    Args:
        work: Shapes and layouts; with `group_order` the output has one channel for every packed lane.
        schedule: Options of the kernel.
        weight: The weight's 2-D view, [O, K].
        pattern: Its row groups.
        bias: [O] or None.
        input_map: Position of every input channel in the input buffer, [I]; None = in order.
        group_order: Store the output channels in the order of the blocks, padding lanes included.

    Raises:
        CodegenError: A buffer or an offset does not fit 32 bits, `group_order` meets a residual, or the layer is pooled
            and adds a residual or runs another kernel than a row-lane one.
    """
    if work.windows != NO_WINDOWS and (work.residual is not None or not isinstance(schedule, RowsSchedule)):
        raise CodegenError(
            f"{work.shape} is pooled ({work.windows}), which row-lane kernels without residual can do, not '{schedule}'"
            f"{' with one' if work.residual is not None else ''}. Pool its result instead."
        )
    if group_order and work.residual is not None:
        raise CodegenError(
            f"{work.shape} adds a residual, whose channels are in order, so its output cannot lie in the order of the "
            "blocks. Pass group_order=False."
        )
    shift = np.zeros(pattern.shape[0], np.float32) if bias is None else bias
    if isinstance(schedule, DepthwiseSchedule):
        taps = pack_depthwise(work, schedule, weight, shift)
        return LayerKernel(work, schedule, None, taps, 0, None, None, None)
    if isinstance(schedule, WinogradSchedule):
        return _make_winograd(work, schedule, weight, shift, input_map)
    stored = stored_pattern(pattern, schedule, work.shape.groups)
    packed = pack(weight, stored, schedule.height, _part_columns(work, schedule))
    blocks = packed.blocks // packed.parts
    offsets = _offsets(work, schedule, packed, input_map)
    cells = 0 if isinstance(schedule, RowsSchedule) else pixel_tiles.scratch_cells(work, schedule, blocks)
    _check_sizes(work, int(packed.values.size), cells)
    _check_offsets(work, offsets)
    lane_bias = packed.per_lane(shift)
    values = packed.values if packed.values.size else np.zeros(1, np.float32)
    offsets = np.concatenate((offsets, np.zeros(pixels.COLUMNS_AHEAD, np.int32)))
    head = (values, offsets, packed.begin, packed.length, packed.base)
    ahead = np.zeros(ahead_cells(work.threads), np.int32)
    if not isinstance(schedule, RowsSchedule):
        cut = cut_units(packed, pixel_tiles.tile_widths(work, schedule), work.threads, schedule.split)
        lists = (*head, packed.rows, packed.count, lane_bias, cut, ahead)
        return LayerKernel(work, schedule, packed, lists, cells, None, cut, None)
    widths = row_walk.tile_widths(work, schedule)
    tiles = widths.size
    cut = cut_units(packed, widths, work.threads, "blocks")
    if group_order:
        first, positions = np.arange(packed.blocks, dtype=np.int32) * schedule.height, group_channel_map(packed)
    else:
        first, positions = first_channels(packed, work, schedule, tiles, cut), None
    ragged = work.in_place and bool((packed.count[first >= 0] < schedule.height).any())
    columns = int(packed.length.mean())
    problem = RowsProblem(packed.blocks, columns, bool((first >= 0).any()), bool((first < 0).any()), ragged)
    arrays = (*head, packed.rows, packed.count, first, lane_bias, cut, ahead)
    return LayerKernel(work, schedule, packed, arrays, 0, positions, cut, problem)


def _make_winograd(
    work: Workload,
    schedule: WinogradSchedule,
    weight: Float32Array,
    bias: Float32Array,
    input_map: IndexArray | None,
) -> LayerKernel:
    positions = read_positions(work.shape, input_map)
    arrays = (*pack_winograd(work, schedule, weight, bias), positions)
    cells = scratch_cells(work, schedule, positions)
    _check_sizes(work, int(arrays[0].size), cells)
    return LayerKernel(work, schedule, None, arrays, cells, None, None, None)


def _offsets(work: Workload, schedule: Schedule, packed: PackedWeight, input_map: IndexArray | None) -> IndexArray:
    """Return the element offset of every entry of the column lists."""
    per_group = packed.pattern.shape[0] // work.shape.groups
    lists = [(group.columns, int(group.rows[0]) // per_group) for group in packed.pattern.groups]
    lists = [(packed.columns, 0)] if work.shape.groups == 1 else lists
    if isinstance(schedule, PixelsSchedule):
        planes, channels = pixel_tiles.planes_read(work, schedule), pixel_tiles.copied_channels(work, schedule)
        found = [plane_offsets(columns, group, work, planes, channels) for columns, group in lists]
    else:
        found = [column_offsets(columns, group, work, input_map) for columns, group in lists]
    return np.concatenate((np.zeros(0, np.int32), *found))


def _part_columns(work: Workload, schedule: Schedule) -> int:
    """Return the columns that a kernel multiplies with all rows before the next ones; 0 = all."""
    return schedule.channels * prod(work.shape.kernel) if isinstance(schedule, PixelsSchedule) else 0


def _check_sizes(work: Workload, weight: int, scratch: int) -> None:
    sizes = {"input": work.x.numel, "output": work.y.numel, "weight": weight, "scratch": scratch}
    for what, size in sizes.items():
        if size > _LARGEST_INDEX:
            raise CodegenError(f"The {what} of {work.shape} has {size} cells; kernels index with 32 bits.")


def _check_offsets(work: Workload, offsets: IndexArray) -> None:
    if offsets.size and int(offsets.min()) < 0:
        raise CodegenError(f"A column offset of {work.shape} is negative: {int(offsets.min())}.")


class BoundKernel:
    """A built function with all its arrays; called with the tensors that change, it runs without further work.

    It does not keep the kernel, whose packed arrays are copies of its own.

    Attributes:
        arrays: The packed arrays as torch tensors, kept alive for the function.
        function: The built function.
        arguments: Its arguments; None for a buffer that every call brings.
    """

    def __init__(
        self,
        function: tvm_ffi.Function,
        kernel: LayerKernel,
        x: torch.Tensor | None,
        y: torch.Tensor,
        residual: torch.Tensor | None,
        scratch: torch.Tensor | None,
        pool: Pool | None = None,
    ) -> None:
        """Bind a function.

        Args:
            function: The built function.
            kernel: Its layer.
            x: Flat input buffer, or None if every call brings another one.
            y: Flat output buffer.
            residual: Flat buffer of the residual, or None if there is none or every call brings another one.
            scratch: Flat scratch of at least `kernel.scratch_cells` cells, or None.
            pool: Where the packed arrays are copied to, `kernel.pool_cells` of it; None = a pool of their own.
        """
        self.function = function
        pool = pool or Pool(kernel.pool_cells)
        self.arrays = tuple(pool.copy(torch.from_numpy(array)) for array in kernel.arrays)
        packed = [*self.arrays]
        if kernel.scratch_cells:
            assert scratch is not None
            assert scratch.numel() >= kernel.scratch_cells
            packed.append(scratch)
        self._scratch = scratch  # addresses own nothing
        middle = [ctypes.c_void_p(array.data_ptr()) for array in packed]
        self._takes_residual = kernel.work.own_residual is not None
        tensors: Sequence[torch.Tensor | None] = (x, y, residual)
        head, tail, extra = (None if tensor is None else tvm_ffi.from_dlpack(tensor) for tensor in tensors)
        self.arguments = [head, *middle, tail, *([extra] if self._takes_residual else [])]

    def run(self) -> None:
        """Run with the buffers given when bound."""
        self.function(*self.arguments)

    def run_with(self, x: torch.Tensor | None, residual: torch.Tensor | None) -> None:
        """Run with another input, another residual, or both; None keeps the one given when bound."""
        arguments = self.arguments.copy()
        if x is not None:
            arguments[0] = tvm_ffi.from_dlpack(x)
        if residual is not None:
            arguments[-1] = tvm_ffi.from_dlpack(residual)
        self.function(*arguments)


class BoundUnary:
    """A built function of one input and one output, a pool, a norm or a copy, with its buffers.

    Attributes:
        function: The built function.
        arguments: Input, constants and output; None for an input that every call brings.
    """

    def __init__(
        self,
        function: tvm_ffi.Function,
        x: torch.Tensor | None,
        y: torch.Tensor,
        constants: Sequence[torch.Tensor] = (),
    ) -> None:
        """Bind a function.

        Args:
            function: The built function.
            x: Flat input buffer, or None if every call brings another one.
            y: Flat output buffer.
            constants: Flat tensors that it takes between the two.
        """
        self.function = function
        self.arguments = [None if tensor is None else tvm_ffi.from_dlpack(tensor) for tensor in (x, *constants, y)]

    def run(self) -> None:
        """Run with the buffers given when bound."""
        self.function(*self.arguments)

    def run_with(self, x: torch.Tensor) -> None:
        """Run with another input."""
        self.function(tvm_ffi.from_dlpack(x), *self.arguments[1:])
