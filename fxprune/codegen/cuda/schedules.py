"""Which tiles are worth trying for a layer on a GPU, and how long each is predicted to take.

A time is the largest of three, and a launch: multiply-adds of the padded tiles on the busiest multiprocessor at the
tile's share of the peak; bytes from the L2 cache to the multiprocessors; bytes from memory. No constant here was
measured on a GPU yet: they are estimates with their reason beside them, and on the careful side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from fxprune.annotation import RowGroupPattern
from fxprune.codegen.cuda.target import CudaTarget
from fxprune.codegen.cuda.tile import LARGEST_GRID_Y, ColumnsSchedule, load_width, tiles_of
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
"""Tiles that compete, the better one of equals first."""

_LAUNCH_US = 3.0
"""One launch, microseconds."""

_DENSE_SHARE = 0.85
"""Share of the float32 peak that cuDNN's direct convolutions and cuBLAS reach."""

_WINOGRAD = 1.5
"""What cuDNN's Winograd kernels gain on 3x3 convolutions of stride 1 after their transforms; 2.25 is the limit."""

_WINOGRAD_CHANNELS = 32
"""Channels from which on Winograd's transforms pay off."""

_MEMORY_SHARE = 0.85
"""Share of the memory's rate that streaming kernels reach."""

_TILE_SHARE = {16: 0.5, 32: 0.65, 64: 0.85}
"""Share of the peak by cells of a thread's tile: 4 x 4 cells wait for shared memory, 8 x 8 do not."""

_WIDTH_SHARE = {1: 0.75, 2: 0.9, 4: 1.0}
"""Share that is left where copies into shared memory move 1, 2 or 4 cells: more copies for the same work."""

_L2_BYTES = 21
"""Bytes from the L2 cache to one multiprocessor in a clock cycle: 5.5 TB/s on an H200."""

_START_CYCLES = 2000
"""What a thread block takes besides its steps: the first copies, addresses, the stores."""

_ALONE = 2.0
"""How much slower a thread block is that has its multiprocessor for itself: nothing hides its waiting."""

_SMALL_INPUT = 25_000_000
"""Bytes of an input that stays in the L2 cache while the blocks of a layer pass over it one by one."""


@dataclass(frozen=True)
class CudaCandidate:
    """A schedule and its predicted time.

    Attributes:
        schedule: Options of the kernel.
        predicted_us: Predicted time, microseconds.
    """

    schedule: ColumnsSchedule
    predicted_us: float


def moved_bytes(work: Workload, cells: int) -> int:
    """Count the bytes a layer cannot avoid to move: input, output and residual once, and `cells` weights."""
    tensors = [work.shape.channels_in * work.shape.batch * prod(work.shape.spatial_in)]
    tensors += [work.shape.channels_out * work.shape.pixels] * (2 if work.residual else 1)
    return 4 * (sum(tensors) + cells)


def memory_us(work: Workload, cells: int, target: CudaTarget) -> float:
    """Return the least time for a layer's bytes, microseconds."""
    return moved_bytes(work, cells) / (target.memory_gbps * _MEMORY_SHARE) / 1e3


def predict_dense_us(work: Workload, target: CudaTarget) -> float:
    """Predict the time of the dense layer in strict float32, microseconds: cuDNN and cuBLAS at their best."""
    shape = work.shape
    cells = shape.columns * shape.channels_out
    rate = target.peak_gflops * _DENSE_SHARE * (_WINOGRAD if _suits_winograd(work) else 1.0)
    return max(2 * shape.macs(cells) / rate / 1e3, memory_us(work, cells, target)) + _LAUNCH_US


def _suits_winograd(work: Workload) -> bool:
    shape = work.shape
    same = (shape.stride, shape.dilation, shape.groups) == ((1, 1, 1), (1, 1, 1), 1)
    return same and shape.kernel == (1, 3, 3) and shape.channels_in >= _WINOGRAD_CHANNELS


def floor_us(work: Workload, stored: int, target: CudaTarget) -> float:
    """Return the time below which no kernel with `stored` cells can come, microseconds."""
    return max(2 * work.shape.macs(stored) / target.peak_gflops / 1e3, memory_us(work, stored, target)) + _LAUNCH_US


def _block_steps(pattern: RowGroupPattern, schedule: ColumnsSchedule) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the steps of every block that `make_table` would make, without packing."""
    height, depth = schedule.height, schedule.depth
    steps = [-(-int(group.columns.size) // depth) for group in pattern.groups]
    counts = [-(-group.height // height) for group in pattern.groups]
    blocks = packed_lanes(pattern, height) // height
    found = np.repeat(np.asarray(steps, np.int64), np.asarray(counts, np.int64))
    return np.concatenate([found, np.zeros(blocks - found.size, np.int64)])


def predict_us(work: Workload, pattern: RowGroupPattern, schedule: ColumnsSchedule, target: CudaTarget) -> float:
    """Predict the time of one kernel, microseconds.

    Args:
        work: The layer.
        pattern: Its row groups.
        schedule: Options of the kernel; they fit the layer.
        target: The GPU.
    """
    tiles, steps = tiles_of(work, schedule), _block_steps(pattern, schedule)
    columns = steps * schedule.depth
    share = _TILE_SHARE[schedule.thread[0] * schedule.thread[1]] * _WIDTH_SHARE[load_width(work)]
    cycles = columns * schedule.rows * schedule.pixels / (target.lanes * share) + _START_CYCLES
    total, clock = target.multiprocessors, target.clock_ghz * 1e3
    # Blocks start longest first: the last to end is the longest one, or all multiprocessors end together.
    busiest = max(float(cycles.sum()) * tiles / total, float(cycles.max(initial=0.0)) * _ALONE)
    from_cache = 4 * float(columns.sum()) * tiles * (schedule.rows + schedule.pixels) / (_L2_BYTES * total)
    stored = int(columns.sum()) * schedule.rows
    return max(busiest / clock, from_cache / clock, memory_us(work, stored, target)) + _LAUNCH_US


def find_candidates(work: Workload, pattern: RowGroupPattern, target: CudaTarget) -> list[CudaCandidate]:
    """Return the schedules that can compute a layer, best prediction first.

    Args:
        work: The layer; all layouts are "chwn".
        pattern: Its row groups.
        target: The GPU.
    """
    found = []
    for tile in TILES:
        schedule = _ordered(tile, work, pattern)
        if schedule is not None:
            found.append(CudaCandidate(schedule, predict_us(work, pattern, schedule, target)))
    return sorted(found, key=lambda candidate: candidate.predicted_us)


def _ordered(tile: ColumnsSchedule, work: Workload, pattern: RowGroupPattern) -> ColumnsSchedule | None:
    """Return the tile with the better order of those whose grid a GPU takes."""
    tiles, blocks = tiles_of(work, tile), packed_lanes(pattern, tile.height) // tile.height
    orders: Sequence[ColumnsSchedule] = [replace(tile, order="pixels"), replace(tile, order="blocks")]
    if work.x.numel * 4 > _SMALL_INPUT:
        orders = orders[::-1]
    second = {"pixels": blocks, "blocks": tiles}
    return next((order for order in orders if second[order.order] <= LARGEST_GRID_Y), None)
