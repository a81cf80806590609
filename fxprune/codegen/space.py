"""Every schedule of a layer that the kernels have and that the cost model does not rule out.

    rows     vectors of rows 1 to 4, or half a vector; every tile of pixels that fits the registers; what the threads
             share; how many tiles run under one block; prefetch; blocks of the groups' rows or of neighbouring rows
    pixels   rows 1 to 16; every number of vectors that fits the registers; what the threads share; the order of tiles
             and blocks

The model adds to `schedules` what a tile with few accumulators loses to the latency of the multiply-adders.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from fxprune.annotation import RowGroupPattern
from fxprune.codegen.cpu import pixel_tiles, row_walk
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.format import in_order, is_scattered, padded_stored
from fxprune.codegen.schedules import (
    Candidate,
    fitting_tiles,
    most_pixel_vectors,
    narrow_share,
    pixel_lanes,
    pixel_schedules,
    predict_us,
    waiting,
)
from fxprune.codegen.target import CpuTarget
from fxprune.codegen.workload import Workload

_CHUNKS = (1, 4, 0)
"""Tiles that run under one block; 0 = all of a thread's tiles."""

_PIXEL_ROWS = (1, 2, 4, 6, 8, 12, 16)
"""Rows of a block of pixel-lane kernels."""

_FEW_ACCUMULATORS = 4
"""Tiles with fewer accumulators are left out where larger ones fit."""


def rows_space(
    work: Workload, pattern: RowGroupPattern, target: CpuTarget, *, channels_in_order: bool = True
) -> Iterator[Candidate]:
    """Yield every row-lane schedule.

    Args:
        work: The layer; both layouts are "nhwc".
        pattern: Its row groups.
        target: The CPU.
        channels_in_order: Whether the output's channels lie in order, so that rows that are no neighbours are stored
            one by one: then blocks in order are tried too.
    """
    ordered = (False, True) if channels_in_order and is_scattered(pattern) else (False,)
    shapes = [(target.lanes, vectors) for vectors in (1, 2, 3, 4)] + [(max(4, target.lanes // 2), 1)]
    for (lanes, vectors), in_place in itertools.product(dict.fromkeys(shapes), ordered):
        height = lanes * vectors
        stored = in_order(pattern, height, work.shape.groups) if in_place else pattern
        for tile in _row_tiles(work, lanes, vectors, target):
            cells = padded_stored(stored, height)
            predicted = predict_us(cells, row_walk.computed_pixels(work, tile), height, target)
            predicted *= waiting(tile.pixels * vectors) / narrow_share(lanes, target)
            for schedule in _row_orders(work, tile):
                yield Candidate(replace(schedule, ordered=in_place), predicted)


def _row_tiles(work: Workload, lanes: int, vectors: int, target: CpuTarget) -> list[RowsSchedule]:
    """Return the pixel tiles that fit the registers; small ones only where no larger one fits the image."""
    fitting = fitting_tiles(work, (lanes, vectors), max(1, (target.registers - vectors) // vectors))
    return [tile for tile in fitting if tile.pixels * vectors >= _FEW_ACCUMULATORS] or fitting


def _row_orders(work: Workload, tile: RowsSchedule) -> Iterator[RowsSchedule]:
    """Yield what threads may share and in which order tiles and blocks run."""
    if row_walk.tiles_of(work, tile) >= work.threads:
        for chunk in _CHUNKS:
            yield replace(tile, chunk=chunk)
        if not tile.even:
            yield replace(tile, prefetch=True)
    if work.threads > 1:
        yield replace(tile, split="blocks")


def pixels_space(work: Workload, pattern: RowGroupPattern, target: CpuTarget) -> Iterator[Candidate]:
    """Yield every pixel-lane schedule.

    Args:
        work: The layer; both layouts are "nchw".
        pattern: Its row groups.
        target: The CPU.
    """
    if not pixel_tiles.supports(work):
        return
    lanes = pixel_lanes(work, target)
    for height in _PIXEL_ROWS:
        cells = padded_stored(pattern, height)
        for vectors in range(1, most_pixel_vectors(work, lanes, height, target) + 1):
            for schedule in pixel_schedules(work, lanes, height, vectors):
                predicted = predict_us(cells, pixel_tiles.computed_pixels(work, schedule), height, target)
                yield Candidate(schedule, waiting(vectors * height) * predicted)
