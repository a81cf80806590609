"""Which tiles are worth trying for a layer on a GPU, and how long each is predicted to take.

A time is the largest of three, and a launch: multiply-adds of the padded tiles on the busiest multiprocessor at the
tile's share of the peak; bytes from the L2 cache to the multiprocessors; bytes from memory. No constant here was
measured on a GPU yet: they are estimates with their reason beside them, and on the careful side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fxprune.annotation import RowGroupPattern
from fxprune.codegen.cuda.costs import LAUNCH_US, grid_us, memory_us
from fxprune.codegen.cuda.target import CudaTarget
from fxprune.codegen.cuda.tensor_schedules import TENSOR_TILES, TF32_TILES, tensor_products_a_cycle
from fxprune.codegen.cuda.tensor_tile import AnySchedule, TensorSchedule, find_tensor_fault
from fxprune.codegen.cuda.tile import LARGEST_GRID_Y, ColumnsSchedule, CudaSchedule, Order, load_width, tiles_of
from fxprune.codegen.format import packed_lanes
from fxprune.codegen.workload import Workload

TILES = (
    ColumnsSchedule(64, 128, 16, 3),
    ColumnsSchedule(32, 256, 16, 2),
    ColumnsSchedule(32, 128, 16, 3),
    ColumnsSchedule(64, 64, 16, 3),
    ColumnsSchedule(32, 64, 16, 3, (4, 4)),
    ColumnsSchedule(16, 128, 16, 3, (4, 4)),
    ColumnsSchedule(16, 64, 16, 3, (4, 4)),
    ColumnsSchedule(8, 128, 16, 2, (4, 4)),
)
"""Tiles that compete in float32, the better one of equals first."""

_DENSE_SHARE = 0.85
"""Share of the float32 peak that cuDNN's direct convolutions and cuBLAS reach."""

_WINOGRAD = 1.5
"""What cuDNN's Winograd kernels gain on 3x3 convolutions of stride 1 after their transforms; 2.25 is the limit."""

_WINOGRAD_CHANNELS = 32
"""Channels from which on Winograd's transforms pay off."""

_TILE_SHARE = {16: 0.5, 32: 0.65, 64: 0.85}
"""Share of the peak by cells of a thread's tile: 4 x 4 cells wait for shared memory, 8 x 8 do not."""

_WIDTH_SHARE = {1: 0.75, 2: 0.9, 4: 1.0}
"""Share that is left where copies into shared memory move 1, 2 or 4 cells: more copies for the same work."""

_SMALL_INPUT = 25_000_000
"""Bytes of an input that stays in the L2 cache while the blocks of a layer pass over it one by one."""


@dataclass(frozen=True)
class CudaCandidate:
    """A schedule and its predicted time.

    Attributes:
        schedule: Options of the kernel.
        predicted_us: Predicted time, microseconds.
    """

    schedule: AnySchedule
    predicted_us: float


def predict_dense_us(work: Workload, target: CudaTarget) -> float:
    """Predict the time of the dense layer in its own type, microseconds: cuDNN and cuBLAS at their best."""
    shape = work.shape
    cells = shape.columns * shape.channels_out
    return max(2 * shape.macs(cells) / _dense_gflops(work, target) / 1e3, memory_us(work, cells, target)) + LAUNCH_US


def _dense_gflops(work: Workload, target: CudaTarget) -> float:
    if target.on_tensor_cores(work.x.cells):
        return target.dense_tensor_gflops * target.tensor_share(work.x.cells)
    return target.peak_gflops("float32") * _DENSE_SHARE * (_WINOGRAD if _suits_winograd(work) else 1.0)


def _suits_winograd(work: Workload) -> bool:
    shape = work.shape
    same = (shape.stride, shape.dilation, shape.groups) == ((1, 1, 1), (1, 1, 1), 1)
    return same and shape.kernel == (1, 3, 3) and shape.channels_in >= _WINOGRAD_CHANNELS


def predict_us(work: Workload, pattern: RowGroupPattern, schedule: AnySchedule, target: CudaTarget) -> float:
    """Predict the time of one kernel, microseconds.

    Args:
        work: The layer.
        pattern: Its row groups.
        schedule: Options of the kernel; they fit the layer.
        target: The GPU.
    """
    if isinstance(schedule, TensorSchedule):
        return grid_us(work, pattern, schedule, target, tensor_products_a_cycle(work, schedule, target))
    share = _TILE_SHARE[schedule.thread[0] * schedule.thread[1]] * _WIDTH_SHARE[load_width(work)]
    return grid_us(work, pattern, schedule, target, target.lanes * share)


def find_candidates(
    work: Workload, pattern: RowGroupPattern, target: CudaTarget, *, every_order: bool = False
) -> list[CudaCandidate]:
    """Return the schedules that can compute a layer, best prediction first.

    Args:
        work: The layer; all layouts are "chwn".
        pattern: Its row groups.
        target: The GPU.
        every_order: Whether each tile comes in both orders of its thread blocks, not in the likely better one alone.
    """
    found: list[CudaCandidate] = []
    for tile in _tiles_for(work, target):
        orders = _find_orders(tile, work, pattern)[: None if every_order else 1]
        if orders:
            predicted_us = predict_us(work, pattern, tile, target)  # whatever the order is
            found += [CudaCandidate(replace(tile, order=order), predicted_us) for order in orders]
    return sorted(found, key=lambda candidate: candidate.predicted_us)


def _tiles_for(work: Workload, target: CudaTarget) -> Sequence[AnySchedule]:
    """Return the tiles for the type of a layer's cells that can compute it."""
    strict: Sequence[AnySchedule] = TILES if work.x.cells == "float32" else ()
    tensor = TENSOR_TILES if work.x.cells != "float32" else TF32_TILES
    if not target.on_tensor_cores(work.x.cells):
        return strict
    return [*(tile for tile in tensor if find_tensor_fault(work, tile) is None), *strict]


def _find_orders(tile: CudaSchedule, work: Workload, pattern: RowGroupPattern) -> list[Order]:
    """Return the orders whose grid a GPU takes, the likely better one first."""
    tiles, blocks = tiles_of(work, tile), packed_lanes(pattern, tile.height) // tile.height
    orders: tuple[Order, Order] = ("pixels", "blocks")
    if work.x.numel * work.x.cell_bytes > _SMALL_INPUT:
        orders = ("blocks", "pixels")
    second = {"pixels": blocks, "blocks": tiles}
    return [order for order in orders if second[order] <= LARGEST_GRID_Y]
