"""One layer and one schedule made into text and arrays for a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxprune.annotation import IndexArray, RowGroupPattern
from fxprune.codegen.cuda.columns import Form, build_columns_kernel
from fxprune.codegen.cuda.fragments import cells_a_word, order_fragments
from fxprune.codegen.cuda.table import BlockTable, make_table
from fxprune.codegen.cuda.tensor_columns import build_tensor_kernel
from fxprune.codegen.cuda.tensor_tile import AnySchedule, TensorSchedule
from fxprune.codegen.cuda.tile import LARGEST_GRID_Y, CudaSchedule, tiles_of
from fxprune.codegen.format import Float32Array, PackedWeight, pack
from fxprune.codegen.workload import Workload, column_offsets
from fxprune.errors import CodegenError

_LARGEST_INDEX = 2**31 - 1


@dataclass(frozen=True, eq=False)
class CudaKernel:
    """A layer's kernel before it is built.

    Attributes:
        work: Shapes and layouts.
        schedule: Options.
        packed: The packed weight.
        table: The weight as the kernel reads it.
        arrays: The constant arguments by name.
        grid: Thread blocks on each axis.
    """

    work: Workload
    schedule: AnySchedule
    packed: PackedWeight
    table: BlockTable
    arrays: Mapping[str, NDArray[np.generic]]
    grid: tuple[int, int, int]

    @property
    def size_bytes(self) -> int:
        """Bytes of values and indices."""
        return sum(int(array.nbytes) for array in self.arrays.values())

    def script(self, name: str, form: Form = "device") -> str:
        """Return the TVMScript of the function under a global symbol.

        Raises:
            CodegenError: The schedule does not fit the layer, or tensor cores are asked for a twin.
        """
        if isinstance(self.schedule, TensorSchedule):
            if form != "device":
                raise CodegenError(f"Schedule '{self.schedule}' has no {form}: a twin's threads know nothing of warps.")
            return build_tensor_kernel(name, self.work, self.schedule)
        return build_columns_kernel(name, self.work, self.schedule, form)


def make_kernel(
    work: Workload,
    schedule: AnySchedule,
    weight: Float32Array,
    pattern: RowGroupPattern,
    bias: Float32Array | None,
) -> CudaKernel:
    """Pack a layer for one schedule.

    Args:
        work: Shapes and layouts.
        schedule: Options of the kernel.
        weight: The weight's 2-D view, [O, K].
        pattern: Its row groups.
        bias: [O] or None.

    Raises:
        CodegenError: A buffer or an offset does not fit 32 bits, or the grid is too large.
    """
    packed = pack(weight, pattern, schedule.height)
    table = make_table(packed, schedule.depth)
    offsets = _offsets(work, packed)
    _check_sizes(work, table, offsets)
    lane_bias = packed.per_lane(np.zeros(pattern.shape[0], np.float32) if bias is None else bias)
    values, base = _order_values(work, schedule, table)
    arrays = {
        "W": _filled(values),
        "OFF": _filled(offsets[table.columns]),
        "BEGIN": table.begin,
        "STEPS": table.steps,
        "BASE": base,
        "ROWS": table.rows,
        "BIAS": lane_bias.reshape(-1, schedule.height)[table.order].reshape(-1),
    }
    return CudaKernel(work, schedule, packed, table, arrays, _grid(work, schedule, table))


def _order_values(work: Workload, schedule: AnySchedule, table: BlockTable) -> tuple[NDArray[np.generic], IndexArray]:
    """Return the weights as the kernel reads them, and where each block begins in them."""
    if isinstance(schedule, TensorSchedule):
        word = np.int32(cells_a_word(work.x.cells))
        return order_fragments(table.values, schedule.height, work.x.cells), table.base // word
    return table.values, table.base


def _filled(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return the array, or one cell in the place of none."""
    return array if array.size else np.zeros(1, array.dtype)


def _offsets(work: Workload, packed: PackedWeight) -> IndexArray:
    """Return the element offset of every entry of the column lists."""
    per_group = packed.pattern.shape[0] // work.shape.groups
    groups = packed.pattern.groups
    parts = [column_offsets(group.columns, int(group.rows[0]) // per_group, work, None) for group in groups]
    return np.concatenate([np.zeros(0, np.int32), *parts])


def _grid(work: Workload, schedule: CudaSchedule, table: BlockTable) -> tuple[int, int, int]:
    tiles = tiles_of(work, schedule)
    first, second = (table.blocks, tiles) if schedule.order == "blocks" else (tiles, table.blocks)
    if second > LARGEST_GRID_Y:
        raise CodegenError(
            f"The second axis of the grid of {work.shape} has {second} thread blocks with schedule '{schedule}', a GPU "
            f"takes {LARGEST_GRID_Y}. Choose a larger tile or the other order."
        )
    return first, second, 1


def _check_sizes(work: Workload, table: BlockTable, offsets: IndexArray) -> None:
    sizes = {"input": work.x.numel, "output": work.y.numel, "weight": int(table.values.size)}
    if work.residual is not None:
        sizes["residual"] = work.residual.numel
    for what, size in sizes.items():
        if size > _LARGEST_INDEX:
            raise CodegenError(f"The {what} of {work.shape} has {size} cells; kernels index with 32 bits.")
    if offsets.size and int(offsets.min()) < 0:
        raise CodegenError(f"A column offset of {work.shape} is negative: {int(offsets.min())}.")
