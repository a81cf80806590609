"""Which tiles on tensor cores are worth trying, and how many multiply-adds each makes in a clock cycle.

A multiprocessor multiplies no faster than its tensor cores do with `mma.sync`, and no faster than shared memory hands
out what they multiply: every warp reads the rows of its rectangle and its pixels for each column, and all of it has to
be written there first. No constant here was measured on a GPU yet.
"""

from __future__ import annotations

from dataclasses import replace

from fxprune.codegen.cuda.target import CudaTarget
from fxprune.codegen.cuda.tensor_tile import TensorSchedule
from fxprune.codegen.cuda.tile import WARP, load_width
from fxprune.codegen.workload import Workload

TENSOR_TILES = (
    TensorSchedule(128, 128, 16, 5, (64, 64)),
    TensorSchedule(64, 128, 32, 3, (32, 64)),
    TensorSchedule(64, 256, 16, 4, (32, 64)),
    TensorSchedule(128, 64, 32, 3, (64, 32)),
    TensorSchedule(32, 256, 16, 4, (32, 64)),
    TensorSchedule(64, 64, 32, 4, (32, 32)),
    TensorSchedule(32, 128, 32, 4, (32, 32)),
    TensorSchedule(16, 256, 16, 4, (16, 64)),
    TensorSchedule(32, 64, 32, 4, (16, 32)),
    TensorSchedule(16, 128, 32, 4, (16, 32)),
    TensorSchedule(16, 64, 16, 4, (16, 32)),
)
"""Tiles for cells of 16 bits that compete, the better one of equals first."""

TF32_TILES = tuple(replace(tile, depth=tile.depth // 2, cell_bytes=4) for tile in TENSOR_TILES)
"""The same for float32: as many bytes a step."""

_SHARED_BYTES_A_CYCLE = 128
"""What shared memory of a multiprocessor reads or writes in a clock cycle: 32 banks of 4 bytes."""

_WAITING = 0.85
"""Share that is left of either rate: barriers, addresses, the first and the last step."""

_WIDTH_SHARE = {2: 0.4, 4: 0.75, 8: 0.9, 16: 1.0}
"""Share that is left where copies into shared memory move so many bytes; copies of 2 are not asynchronous."""


def tensor_products_a_cycle(work: Workload, schedule: TensorSchedule, target: CudaTarget) -> float:
    """Return the multiply-adds of one multiprocessor in a clock cycle with this tile."""
    warps, (wm, wn) = schedule.threads // WARP, schedule.warp
    cell_bytes = schedule.cell_bytes
    column_bytes = cell_bytes * (warps * (wm + wn) + schedule.rows + schedule.pixels)
    by_shared = _SHARED_BYTES_A_CYCLE * schedule.rows * schedule.pixels / column_bytes
    peak = target.tensor_gflops * target.tensor_share(work.x.cells)
    rate = peak * target.mma_share / (2 * target.multiprocessors * target.clock_ghz)
    return min(rate, by_shared) * _WAITING * _WIDTH_SHARE[cell_bytes * load_width(work)]
