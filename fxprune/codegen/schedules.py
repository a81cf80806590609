"""Which schedules are worth trying for a layer, and how long each is predicted to take.

The cost model ranks: t = 2 * padded cells * computed pixels / (rate * E), with E the share of the dense rate that a
tile of that height reaches (`target.EFFICIENCY`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fxprune.annotation import RowGroupPattern
from fxprune.codegen.cpu import pixel_tiles, row_walk
from fxprune.codegen.cpu.depthwise import DepthwiseSchedule, is_depthwise
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.cpu.winograd_plan import WinogradSchedule, phase_products
from fxprune.codegen.format import full_pattern, in_order, packed_lanes
from fxprune.codegen.target import EFFICIENCY, CpuTarget
from fxprune.codegen.workload import ConvShape, Workload

Schedule = RowsSchedule | PixelsSchedule | DepthwiseSchedule | WinogradSchedule

_CLOCK_GHZ = 3.0
"""Clock that the predictions assume, with one vector multiply-add a cycle."""

_DENSE_EFFICIENCY = 0.9
"""Share of the peak that dense convolutions reach."""

_DEPTHWISE_EFFICIENCY, _DEPTHWISE_DENSE_EFFICIENCY = 0.25, 0.15
"""Share of the peak that depthwise layers reach, ours and torch's: each activation is used a few times only."""

_DEPTHWISE_TILES = ((1, 8), (2, 6), (2, 4), (4, 3))
"""Vectors of channels and pixels in a tile of a depthwise kernel."""

LAUNCH_US = 3.0
"""One parallel region, microseconds."""

LATENCY = 12
"""Accumulators that keep the multiply-adders busy: latency 4 times two a cycle, and some slack."""

CLOSE = 1.1
"""Block heights predicted within this factor of the best are worth a measurement."""

CACHE_CELLS = 2**18
"""float32 cells, 1 MB, of an activation or a weight that no longer stays in the L2 cache of a core."""


@dataclass(frozen=True)
class Candidate:
    """A schedule and its predicted time.

    Attributes:
        schedule: Options of the kernel.
        predicted_us: Predicted time, microseconds.
        group_height: Height that the row groups are covered for; None = as they are.
    """

    schedule: Schedule
    predicted_us: float
    group_height: int | None = None


def peak_gflops(target: CpuTarget) -> float:
    """Return the rate that predictions assume, GFLOP/s over all threads."""
    return 2 * target.lanes * _CLOCK_GHZ * target.threads


def predict_dense_us(work: Workload, target: CpuTarget) -> float:
    """Predict the time of the dense layer, microseconds."""
    shape = work.shape
    flops = 2 * shape.macs(shape.columns * shape.channels_out)
    efficiency = _DEPTHWISE_DENSE_EFFICIENCY if is_depthwise(shape) else _DENSE_EFFICIENCY
    return flops / (peak_gflops(target) * efficiency) / 1e3 + LAUNCH_US


def efficiency(height: int) -> float:
    """Return the share of the dense rate that tiles of so many rows reach."""
    return next((share for rows, share in reversed(EFFICIENCY) if rows <= height), EFFICIENCY[0][1])


def predict_us(cells: int, pixels_computed: float, height: int, target: CpuTarget) -> float:
    """Predict the time of a kernel, microseconds.

    Args:
        cells: Stored cells, zero rows of ragged blocks included.
        pixels_computed: Output positions computed, wasted ones included.
        height: Rows of a block.
        target: The CPU.
    """
    return 2 * cells * pixels_computed / (peak_gflops(target) * efficiency(height)) / 1e3 + LAUNCH_US


def waiting(accumulators: int) -> float:
    """Return how many times longer a tile takes whose multiply-adders wait for their own results."""
    return max(1.0, LATENCY / accumulators)


def may_overwrite(schedule: Schedule, work: Workload) -> bool:
    """Whether a kernel may find its residual in its output: it lies alike, and no output is computed twice.

    Args:
        schedule: Its options.
        work: The layer as it will run.
    """
    if work.residual != work.y:
        return False
    if isinstance(schedule, RowsSchedule):
        return row_walk.computed_pixels(work, schedule) == work.shape.pixels
    return isinstance(schedule, PixelsSchedule) and pixel_tiles.computes_once(work, schedule)


def stored_pattern(pattern: RowGroupPattern, schedule: object, conv_groups: int) -> RowGroupPattern:
    """Return the row groups that a kernel stores.

    Args:
        pattern: The layer's row groups.
        schedule: Options of the kernel, of any target.
        conv_groups: Groups of the convolution.
    """
    if isinstance(schedule, RowsSchedule) and schedule.ordered:
        return in_order(pattern, schedule.height, conv_groups)
    whole = isinstance(schedule, DepthwiseSchedule | WinogradSchedule)
    return full_pattern(pattern.shape, conv_groups) if whole else pattern


def block_lanes(pattern: RowGroupPattern, schedule: Schedule, conv_groups: int) -> int:
    """Count the lanes of all blocks that a kernel stores: channels of an output that lies in the order of the blocks.

    Args:
        pattern: The layer's row groups.
        schedule: Options of the kernel.
        conv_groups: Groups of the convolution.
    """
    return packed_lanes(stored_pattern(pattern, schedule, conv_groups), schedule.height)


def executed_share(schedule: object, shape: ConvShape) -> float:
    """Return the multiply-adds that a kernel executes, as a share of one for every stored cell and output.

    Args:
        schedule: Options of the kernel, of any target.
        shape: The layer.
    """
    if not isinstance(schedule, WinogradSchedule):
        return 1.0
    return sum(phase_products(shape, schedule.outputs)) / (schedule.outputs * shape.kernel[2])


def depthwise_candidates(work: Workload, target: CpuTarget) -> Iterator[Candidate]:
    """Yield schedules for a depthwise layer.

    Args:
        work: The layer; both layouts are "nhwc".
        target: The CPU.
    """
    flops = 2 * work.shape.macs(work.shape.columns * work.shape.channels_out)
    predicted = flops / (peak_gflops(target) * _DEPTHWISE_EFFICIENCY) / 1e3 + LAUNCH_US
    for vectors, pixels_in_tile in _DEPTHWISE_TILES:
        yield Candidate(DepthwiseSchedule(target.lanes, vectors, pixels_in_tile), predicted)
