"""Which schedules are worth trying for a layer, and how long each is predicted to take.

The cost model ranks: t = 2 * padded cells * computed pixels / (rate * E), with E the share of the dense rate that a
tile of that height reaches (`target.EFFICIENCY`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fxprune.annotation import RowGroupPattern
from fxprune.codegen.cpu import pixels, rows
from fxprune.codegen.cpu.pixels import PixelsSchedule
from fxprune.codegen.cpu.rows import RowsSchedule
from fxprune.codegen.format import padded_stored
from fxprune.codegen.target import EFFICIENCY, CpuTarget
from fxprune.codegen.workload import Workload

Schedule = RowsSchedule | PixelsSchedule

_CLOCK_GHZ = 3.0
"""Clock that the predictions assume, with one vector multiply-add a cycle."""

_DENSE_EFFICIENCY = 0.9
"""Share of the peak that dense convolutions reach."""

_LAUNCH_US = 3.0
"""One parallel region, microseconds."""

_PIXEL_TILES = {1: (8, 4, 14), 2: (4, 8), 4: (4, 2, 6), 8: (2, 1)}
"""Vectors of pixels in a tile, best first, for each number of rows."""


@dataclass(frozen=True)
class Candidate:
    """A schedule and its predicted time.

    Attributes:
        schedule: Options of the kernel.
        predicted_us: Predicted time, microseconds.
    """

    schedule: Schedule
    predicted_us: float


def peak_gflops(target: CpuTarget) -> float:
    """Return the rate that predictions assume, GFLOP/s over all threads."""
    return 2 * target.lanes * _CLOCK_GHZ * target.threads


def predict_dense_us(work: Workload, target: CpuTarget) -> float:
    """Predict the time of the dense layer, microseconds."""
    shape = work.shape
    flops = 2 * shape.macs(shape.columns * shape.channels_out)
    return flops / (peak_gflops(target) * _DENSE_EFFICIENCY) / 1e3 + _LAUNCH_US


def _efficiency(height: int) -> float:
    return next((share for rows, share in reversed(EFFICIENCY) if rows <= height), EFFICIENCY[0][1])


def _predict_us(cells: int, pixels_computed: int, height: int, target: CpuTarget) -> float:
    return 2 * cells * pixels_computed / (peak_gflops(target) * _efficiency(height)) / 1e3 + _LAUNCH_US


def _row_heights(pattern: RowGroupPattern, target: CpuTarget) -> list[tuple[int, int, int]]:
    """Return (lanes, vectors, padded cells) by predicted cost, best first."""
    shapes = [(target.lanes, 4), (target.lanes, 2), (target.lanes, 1)]
    if target.lanes > 4:
        shapes.append((target.lanes // 2, 1))
    sized = [(lanes, vectors, padded_stored(pattern, lanes * vectors)) for lanes, vectors in shapes]
    return sorted(sized, key=lambda item: (item[2] / _efficiency(item[0] * item[1]), -item[0] * item[1]))


def _row_tiles(work: Workload, vectors: int, target: CpuTarget) -> list[tuple[int, int]]:
    """Return pixel tiles that fit the registers, least wasted pixels first, then the largest."""
    most = max(1, (target.registers - vectors) // vectors)
    tiles = [(ph, pw) for ph in (1, 2, 4) for pw in range(1, most // ph + 1) if rows.fits(work, (ph, pw))]
    enough = [tile for tile in tiles if tile[0] * tile[1] * 2 >= most] or tiles

    def waste(tile: tuple[int, int]) -> tuple[int, int, int]:
        return rows.computed_pixels(work, tile), tile[0], -tile[1]

    return sorted(enough, key=waste)


def refit(schedule: Schedule, work: Workload, target: CpuTarget) -> Schedule:
    """Return the schedule with a tile that fits the layer's final layouts.

    Args:
        schedule: A schedule chosen on trial layouts.
        work: The layer as it will run.
        target: The CPU.
    """
    if not isinstance(schedule, RowsSchedule) or rows.fits(work, schedule.tile):
        return schedule
    return replace(schedule, tile=_row_tiles(work, schedule.vectors, target)[0])


def rows_candidates(
    work: Workload, pattern: RowGroupPattern, target: CpuTarget, *, heights: int = 2, tiles: int = 1
) -> Iterator[Candidate]:
    """Yield row-lane schedules for a layer.

    Args:
        work: The layer; both layouts are "nhwc".
        pattern: Its row groups.
        target: The CPU.
        heights: How many block heights to try.
        tiles: How many pixel tiles to try for each height.
    """
    for lanes, vectors, cells in _row_heights(pattern, target)[:heights]:
        for tile in _row_tiles(work, vectors, target)[:tiles]:
            predicted = _predict_us(cells, rows.computed_pixels(work, tile), lanes * vectors, target)
            count = rows.tiles_of(work, tile)
            if count >= work.threads:
                yield Candidate(RowsSchedule(lanes, vectors, tile, "pixels", 1), predicted)
            if work.threads > 1 and count < 64 * work.threads:
                yield Candidate(RowsSchedule(lanes, vectors, tile, "blocks"), predicted)


def _pixel_tile(work: Workload, lanes: int, count: int) -> tuple[int, int]:
    """Return (lines, vectors a line) for a tile of about `count` vectors."""
    if work.shape.is_pointwise:
        depth, height, width = work.shape.spatial_out
        return 1, max(1, min(count, depth * height * width // lanes))
    vectors = min(count, -(-work.shape.spatial_out[2] // lanes))
    return max(1, min(count // vectors, work.shape.spatial_out[1])), vectors


def _pixel_lanes(work: Workload, target: CpuTarget) -> int:
    """Return the widest vector that wastes no more lanes than the next narrower one."""
    depth, height, width = work.shape.spatial_out
    line = depth * height * width if work.shape.is_pointwise else width
    lanes = target.lanes
    while lanes > 4 and line < lanes:
        lanes //= 2
    return lanes


def pixels_candidates(
    work: Workload, pattern: RowGroupPattern, target: CpuTarget, *, heights: int = 2, tiles: int = 2
) -> Iterator[Candidate]:
    """Yield pixel-lane schedules for a layer.

    Args:
        work: The layer; both layouts are "nchw".
        pattern: Its row groups.
        target: The CPU.
        heights: How many block heights to try.
        tiles: How many pixel tiles to try for each height.
    """
    if not pixels.supports(work):
        return
    sized = sorted((padded_stored(pattern, height) / _efficiency(height), height) for height in _PIXEL_TILES)
    lanes = _pixel_lanes(work, target)
    for _, height in sized[:heights]:
        for count in _PIXEL_TILES[height][:tiles]:
            tile = _pixel_tile(work, lanes, count)
            for split in ("pixels", "blocks"):
                schedule = PixelsSchedule(lanes, height, tile, split)
                if not pixels.fits(work, schedule):
                    continue
                predicted = _predict_us(
                    padded_stored(pattern, height), pixels.computed_pixels(work, schedule), height, target
                )
                yield Candidate(schedule, predicted)
