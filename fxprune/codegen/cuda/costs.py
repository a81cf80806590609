"""What a layer costs on a GPU whatever tile computes it: bytes, launches, and the time of a grid of thread blocks.

No constant here was measured on a GPU yet: they are estimates with their reason beside them, and on the careful side.
"""

from __future__ import annotations

from math import prod

import numpy as np

from fxprune.annotation import RowGroupPattern
from fxprune.codegen.cuda.target import CudaTarget
from fxprune.codegen.cuda.tile import CudaSchedule, tiles_of
from fxprune.codegen.format import packed_lanes
from fxprune.codegen.workload import Workload

LAUNCH_US = 3.0
"""One launch, microseconds."""

_MEMORY_SHARE = 0.85
"""Share of the memory's rate that streaming kernels reach."""

_L2_BYTES = 21
"""Bytes from the L2 cache to one multiprocessor in a clock cycle: 5.5 TB/s on an H200."""

_START_CYCLES = 2000
"""What a thread block takes besides its steps: the first copies, addresses, the stores."""

_ALONE = 2.0
"""How much slower a thread block is that has its multiprocessor for itself: nothing hides its waiting."""


def moved_bytes(work: Workload, cells: int) -> int:
    """Count the bytes a layer cannot avoid to move: input, output and residual once, and `cells` weights."""
    tensors = [work.shape.channels_in * work.shape.batch * prod(work.shape.spatial_in)]
    tensors += [work.shape.channels_out * work.shape.pixels] * (2 if work.residual else 1)
    return work.x.cell_bytes * (sum(tensors) + cells)


def memory_us(work: Workload, cells: int, target: CudaTarget) -> float:
    """Return the least time for a layer's bytes, microseconds."""
    return stream_us(moved_bytes(work, cells), target)


def stream_us(size: int, target: CudaTarget) -> float:
    """Return the least time for so many bytes from memory or to it, microseconds."""
    return size / (target.memory_gbps * _MEMORY_SHARE) / 1e3


def floor_us(work: Workload, stored: int, target: CudaTarget) -> float:
    """Return the time below which no kernel with `stored` cells can come, microseconds."""
    peak = target.peak_gflops(work.x.cells)
    return max(2 * work.shape.macs(stored) / peak / 1e3, memory_us(work, stored, target)) + LAUNCH_US


def count_steps(pattern: RowGroupPattern, schedule: CudaSchedule) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the steps of every block that `make_table` would make, without packing."""
    height, depth = schedule.height, schedule.depth
    steps = [-(-int(group.columns.size) // depth) for group in pattern.groups]
    counts = [-(-group.height // height) for group in pattern.groups]
    blocks = packed_lanes(pattern, height) // height
    found = np.repeat(np.asarray(steps, np.int64), np.asarray(counts, np.int64))
    return np.concatenate([found, np.zeros(blocks - found.size, np.int64)])


def grid_us(
    work: Workload, pattern: RowGroupPattern, schedule: CudaSchedule, target: CudaTarget, products_a_cycle: float
) -> float:
    """Return the time of a grid of thread blocks, microseconds.

    Args:
        work: The layer.
        pattern: Its row groups.
        schedule: Options of the kernel; they fit the layer.
        target: The GPU.
        products_a_cycle: Multiply-adds of one multiprocessor in a clock cycle with this tile.
    """
    tiles, steps = tiles_of(work, schedule), count_steps(pattern, schedule)
    columns = steps * schedule.depth
    cycles = columns * schedule.rows * schedule.pixels / products_a_cycle + _START_CYCLES
    total, clock = target.multiprocessors, target.clock_ghz * 1e3
    # Blocks start longest first: the last to end is the longest one, or all multiprocessors end together.
    busiest = max(float(cycles.sum()) * tiles / total, float(cycles.max(initial=0.0)) * _ALONE)
    cells = float(columns.sum()) * tiles * (schedule.rows + schedule.pixels)
    from_cache = work.x.cell_bytes * cells / (_L2_BYTES * total)
    stored = int(columns.sum()) * schedule.rows
    return max(busiest / clock, from_cache / clock, memory_us(work, stored, target)) + LAUNCH_US
