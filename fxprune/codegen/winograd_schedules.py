"""Which Winograd schedules a layer has, which of them are worth trying, and how long each is predicted to take."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from fxprune.codegen.cpu.winograd_plan import (
    WinogradSchedule,
    count_blocks,
    count_parts,
    count_tiles,
    fits,
    lines_read,
    phase_products,
    phase_taps,
    supports,
)
from fxprune.codegen.minimal_filtering import MOST_PRODUCTS
from fxprune.codegen.schedules import LAUNCH_US, Candidate, peak_gflops
from fxprune.codegen.target import CpuTarget
from fxprune.codegen.workload import CELL_BYTES, ConvShape, Workload

_EFFICIENCY = 0.85
"""Share of the peak at which the products are summed: the transforms take the rest."""

_MEMORY_RATE = 17.5e3
"""Bytes a microsecond that a core reads of weights which no cache of its own holds. On an Intel Xeon a kernel of 256
channels and 5.5 MB takes 315 us longer inside ResNet-50 than alone, where it finds its weights in the cache."""

_LINES = 8
"""Output lines that are transformed at once, at most: more would not stay in the L2 cache."""

_SPARE_REGISTERS = 4
"""Registers that hold no accumulator: weights and samples."""


def winograd_candidates(work: Workload, target: CpuTarget) -> Iterator[Candidate]:
    """Yield the schedules worth trying for a layer, as if it were dense.

    Args:
        work: The layer; both layouts are "nhwc".
        target: The CPU.
    """
    height = work.shape.spatial_out[1]
    for vectors in (1, 2):
        for schedule in _tiles(work, vectors, target)[:1]:
            lines = min(range(1, min(_LINES, height) + 1), key=lambda lines: _busiest_lines(work, lines))
            yield _predict(work, replace(schedule, lines=lines), target)
            if work.threads > 1 and work.shape.batch * height < _LINES * work.threads:
                yield _predict(work, replace(schedule, lines=min(_LINES, height), split="blocks"), target)


def winograd_space(work: Workload, target: CpuTarget) -> Iterator[Candidate]:
    """Yield every schedule of a layer, as if it were dense.

    Args:
        work: The layer; both layouts are "nhwc".
        target: The CPU.
    """
    lines = range(min(4, work.shape.spatial_out[1]), min(_LINES, work.shape.spatial_out[1]) + 1)
    for vectors in (1, 2, 3, 4):
        for schedule, count in itertools.product(_tiles(work, vectors, target), lines):
            yield _predict(work, replace(schedule, lines=count), target)
            if work.threads > 1:
                yield _predict(work, replace(schedule, lines=count, split="blocks"), target)


def _tiles(work: Workload, vectors: int, target: CpuTarget) -> list[WinogradSchedule]:
    """Return a schedule for every number of outputs, with the tiles that fit the registers, fewest products first."""
    shape, most = work.shape, (target.registers - _SPARE_REGISTERS) // vectors
    if not supports(shape):
        return []
    taps = phase_taps(shape)[0]
    found = [
        WinogradSchedule(target.lanes, vectors, outputs, most // (outputs + taps - 1), 1, "pixels")
        for outputs in range(2, MOST_PRODUCTS - taps + 2)
        if most >= outputs + taps - 1
    ]

    def products(schedule: WinogradSchedule) -> int:
        return sum(phase_products(shape, schedule.outputs)) * count_tiles(shape, schedule.outputs)

    return sorted((one for one in found if fits(shape, one)), key=products)


def _busiest_lines(work: Workload, lines: int) -> tuple[int, int]:
    """Return the lines that the busiest thread computes, and those that it transforms, for so many at once."""
    parts = -(-count_parts(work.shape, lines) // work.threads)
    return parts * lines, parts * lines_read(work.shape, lines)


def _predict(work: Workload, schedule: WinogradSchedule, target: CpuTarget) -> Candidate:
    flops = 2 * _count_weights(work.shape, schedule) * count_tiles(work.shape, schedule.outputs)
    return Candidate(schedule, flops / (peak_gflops(target) * _EFFICIENCY) / 1e3 + LAUNCH_US)


def weights_us(work: Workload, schedule: WinogradSchedule) -> float:
    """Return what a kernel waits for its weights inside a model, in microseconds; alone it finds them in the cache.

    Args:
        work: The layer.
        schedule: Options of the kernel; threads that share pixels read all weights, each of them.
    """
    size = _count_weights(work.shape, schedule) * CELL_BYTES["float32"]
    return size / _MEMORY_RATE / (work.threads if schedule.split == "blocks" else 1)


def _count_weights(shape: ConvShape, schedule: WinogradSchedule) -> int:
    """Count the transformed weights; each is multiplied once for every tile."""
    rows = count_blocks(shape, schedule.height) * schedule.height
    return rows * (shape.columns // shape.kernel[2]) * sum(phase_products(shape, schedule.outputs))
