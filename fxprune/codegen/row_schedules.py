"""Which row-lane schedules a layer has, which of them are worth trying, and how long each is predicted to take."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from fxprune.annotation import RowGroupPattern
from fxprune.codegen.cpu import pixel_tiles, row_walk
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.format import in_order, is_scattered, padded_stored
from fxprune.codegen.schedules import CACHE_CELLS, CLOSE, LATENCY, Candidate, Schedule, efficiency, predict_us, waiting
from fxprune.codegen.target import CpuTarget
from fxprune.codegen.workload import NO_WINDOWS, Workload

_NARROW_SHARE = 0.72
"""Share of its efficiency that a row-lane kernel keeps whose vectors are half as wide as the processor's: it loads an
input for every multiply-add."""

_WEIGHTS_PIXELS = 4
"""What a tile's weights cost on their way from the L2 cache, in pixels: 3x3 layers of 512 channels take 6 % longer in
tiles of 1x7 than of 2x7, a seventh of which is computed twice."""

_INPUT_PIXELS = 0.05
"""What a pixel of the input costs on its way to a tile, in pixels computed: 3x3 layers take 1 to 5 % less time in tiles
of 2x7 than of 1x14."""

_SPARE_REGISTERS = 4
"""Registers that hold no accumulator: with two fewer linear layers of 768 channels took 13 % longer."""

_WEIGHT_CELLS = 2**13
"""float32 cells, 32 kB, of packed weights that leave no room in the L1 cache and are worth keeping for several tiles: a
1x1 layer of 1024 to 256 channels at 14x14, 0.8, takes 60 us with them, 67 without."""

_CHUNK = 4
"""Tiles that share a block of weights on their way from the L2 cache."""

_SCATTERED = 3.0
"""Blocks of neighbouring rows are worth a measurement if they are predicted within this factor of the best blocks whose
rows would be stored one by one."""

_PREFETCH_PIXELS = 8
"""Largest tile for prefetching, pixels: more lines at once than this evict each other from the L1 cache."""

_NARROW_PIXELS = 16
"""Largest tile of blocks narrower than a vector that is worth a measurement beside the one of the least waste: every
multiply-add loads an input of its own, and with fewer pixels more of them are still in the L1 cache."""

_CHUNKS = (1, 4, 0)
"""Tiles that run under one block; 0 = all of a thread's tiles."""

_POOLED_CELLS = 2**20
"""Cells of a layer, 4 MB, that are written to memory: a kernel that pools them keeps them in registers, but its tiles
are of whole windows. Layers of VGG-16 at 224x224 and 112x112 gain what their pools take, smaller ones nothing."""

_UNEVEN = 1.05
"""A kernel pools if the thread with the most tiles has at most so many times its share."""

_FEW_ACCUMULATORS = 4
"""Tiles with fewer accumulators are left out where larger ones fit."""


def rows_candidates(
    work: Workload, pattern: RowGroupPattern, target: CpuTarget, *, channels_in_order: bool = True
) -> Iterator[Candidate]:
    """Yield row-lane schedules for a layer.

    Args:
        work: The layer; both layouts are "nhwc".
        pattern: Its row groups.
        target: The CPU.
        channels_in_order: Whether the output's channels lie in order, so that rows that are no neighbours are stored
            one by one: then blocks of neighbouring rows are worth more cells.
    """
    heights = _row_heights(work, pattern, target)
    best = heights[0][0]
    for cost, shape, cells in heights:
        if cost <= CLOSE * best:
            yield from _rows_variants(work, shape, cells, target)
    cost, (lanes, vectors), cells = min(_neighbours(work, pattern, vectors, target) for vectors in (2, 1))
    scattered = is_scattered(pattern)
    if not scattered and cells == padded_stored(pattern, lanes * vectors):
        return
    if cost <= (_SCATTERED if scattered and channels_in_order else CLOSE) * best:
        for candidate in _rows_variants(work, (lanes, vectors), cells, target):
            assert isinstance(candidate.schedule, RowsSchedule)
            yield replace(candidate, schedule=replace(candidate.schedule, ordered=True))


def _row_heights(
    work: Workload, pattern: RowGroupPattern, target: CpuTarget
) -> list[tuple[float, tuple[int, int], int]]:
    """Return (cost, (lanes, vectors), padded cells) of every block shape, the least cost first."""
    shapes = [(target.lanes, 4), (target.lanes, 2), (target.lanes, 1)]
    if target.lanes > 4:
        shapes.append((target.lanes // 2, 1))
    found = []
    for lanes, vectors in shapes:
        cells, best = padded_stored(pattern, lanes * vectors), _row_tiles(work, (lanes, vectors), target)[0]
        share = efficiency(lanes * vectors) * _narrow_share(lanes, target)
        found.append((cells / share * waiting(best.pixels * vectors), (lanes, vectors), cells))
    return sorted(found, key=lambda one: (one[0], -one[1][0] * one[1][1]))


def _narrow_share(lanes: int, target: CpuTarget) -> float:
    """Return the share of its efficiency that a row-lane kernel keeps whose vectors have so many lanes."""
    return _NARROW_SHARE if lanes < target.lanes else 1.0


def _row_tiles(work: Workload, block: tuple[int, int], target: CpuTarget) -> list[RowsSchedule]:
    """Return the tiles of one block shape, (lanes, vectors), that fit the registers, the cheapest first.

    Every tile reads its weights and the input around it, so a pixel is cheaper in a larger tile, and with taps in a
    square one; of equals, those of one line go first.
    """
    vectors = block[1]
    most = max(1, (target.registers - _SPARE_REGISTERS) // vectors)
    fitting = _fitting_tiles(work, block, most)
    enough = [tile for tile in fitting if tile.pixels * vectors >= min(most * vectors, LATENCY)] or fitting

    def cost(tile: RowsSchedule) -> tuple[float, int, int]:
        reading = _WEIGHTS_PIXELS + _INPUT_PIXELS * row_walk.pixels_read(work, tile)
        total = row_walk.computed_pixels(work, tile) + row_walk.tiles_of(work, tile) * reading
        return total, len(row_walk.find_forms(work, tile)), tile.tile[0]

    return sorted(enough, key=cost)


def _fitting_tiles(work: Workload, block: tuple[int, int], most: int) -> list[RowsSchedule]:
    """Return every tile of one block shape, (lanes, vectors), that has so many pixels at most and fits the layer."""
    tiles = [
        RowsSchedule(*block, (ph, pw), "pixels", even=even)
        for ph, even in (*((lines, False) for lines in dict.fromkeys((1, 2, 4, work.windows.height))), (1, True))
        for pw in range(1, most // ph + 1)
    ]
    return [tile for tile in tiles if row_walk.fits(work, tile)]


def _neighbours(
    work: Workload, pattern: RowGroupPattern, vectors: int, target: CpuTarget
) -> tuple[float, tuple[int, int], int]:
    """Return (cost, (lanes, vectors), padded cells) of blocks of neighbouring rows."""
    height = target.lanes * vectors
    cells = padded_stored(in_order(pattern, height, work.shape.groups), height)
    return cells / efficiency(height), (target.lanes, vectors), cells


def _rows_variants(work: Workload, shape: tuple[int, int], cells: int, target: CpuTarget) -> Iterator[Candidate]:
    """Yield the schedules for one block shape, (lanes, vectors), that stores so many cells."""
    lanes, vectors = shape
    tiles = _row_tiles(work, shape, target)
    best, count = tiles[0], row_walk.tiles_of(work, tiles[0])
    predicted = predict_us(cells, row_walk.computed_pixels(work, best), lanes * vectors, target)
    predicted /= _narrow_share(lanes, target)
    shared = [best] if count >= work.threads else []
    narrow = next((tile for tile in tiles if tile.pixels <= _NARROW_PIXELS), best)
    if lanes < target.lanes and narrow != best and row_walk.tiles_of(work, narrow) >= work.threads:
        shared.append(narrow)
    if count >= work.threads and max(work.x.numel, work.y.numel) > CACHE_CELLS:
        small = next((tile for tile in tiles if tile.pixels <= _PREFETCH_PIXELS and not tile.even), None)
        shared += [replace(small, prefetch=True)] if small else []
    if count >= _CHUNK * work.threads and cells > _WEIGHT_CELLS:
        shared.append(replace(best, chunk=_CHUNK))
    if count >= 2 * work.threads and cells > CACHE_CELLS:
        shared.append(replace(best, chunk=0))
    if work.threads > 1 and count < 64 * work.threads:
        shared.append(replace(best, split="blocks"))
    yield from (Candidate(schedule, predicted) for schedule in shared)


def may_pool(schedule: RowsSchedule, work: Workload, target: CpuTarget) -> bool:
    """Whether a kernel gains by pooling what it computes: tiles of whole windows fit, and threads get equal shares.

    Args:
        schedule: A schedule chosen for the layer alone; `refit` makes it fit.
        work: The layer with its windows; layouts do not matter.
        target: The CPU.
    """
    large = work.shape.channels_out * work.shape.pixels >= _POOLED_CELLS
    if not large or not _row_tiles(work, (schedule.lanes, schedule.vectors), target):
        return False
    refitted = refit(schedule, work, target)
    assert isinstance(refitted, RowsSchedule)
    tiles = row_walk.tiles_of(work, refitted)
    return schedule.split == "blocks" or -(-tiles // work.threads) * work.threads <= _UNEVEN * tiles


def refit(schedule: Schedule, work: Workload, target: CpuTarget) -> Schedule:
    """Return the schedule with a tile that fits the layer's final layouts.

    Args:
        schedule: A schedule chosen on trial layouts.
        work: The layer as it will run.
        target: The CPU.
    """
    if isinstance(schedule, PixelsSchedule) and not pixel_tiles.fits(work, schedule):
        return replace(schedule, vectors=pixel_tiles.most_vectors(work, schedule.lanes))
    if not isinstance(schedule, RowsSchedule) or row_walk.fits(work, schedule):
        return schedule
    best, *others = _row_tiles(work, (schedule.lanes, schedule.vectors), target)
    if work.windows != NO_WINDOWS:
        small = next((tile for tile in (best, *others) if tile.pixels <= _PREFETCH_PIXELS), best)
        return replace(schedule, tile=small.tile, even=False, prefetch=False)
    return replace(schedule, tile=best.tile, even=best.even, prefetch=schedule.prefetch and not best.even)


def rows_space(
    work: Workload, pattern: RowGroupPattern, target: CpuTarget, *, channels_in_order: bool = True
) -> Iterator[Candidate]:
    """Yield every row-lane schedule of a layer: vectors of rows 1 to 4, or half a vector, every tile and order.

    The prediction adds what a tile with few accumulators loses to the latency of the multiply-adders.

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
        for tile in _space_tiles(work, (lanes, vectors), target):
            cells = padded_stored(stored, height)
            predicted = predict_us(cells, row_walk.computed_pixels(work, tile), height, target)
            predicted *= waiting(tile.pixels * vectors) / _narrow_share(lanes, target)
            for schedule in _space_orders(work, tile):
                yield Candidate(replace(schedule, ordered=in_place), predicted)


def _space_tiles(work: Workload, block: tuple[int, int], target: CpuTarget) -> list[RowsSchedule]:
    """Return the pixel tiles that fit the registers; small ones only where no larger one fits the image."""
    vectors = block[1]
    fitting = _fitting_tiles(work, block, max(1, (target.registers - vectors) // vectors))
    return [tile for tile in fitting if tile.pixels * vectors >= _FEW_ACCUMULATORS] or fitting


def _space_orders(work: Workload, tile: RowsSchedule) -> Iterator[RowsSchedule]:
    """Yield what threads may share and in which order tiles and blocks run."""
    if row_walk.tiles_of(work, tile) >= work.threads:
        for chunk in _CHUNKS:
            yield replace(tile, chunk=chunk)
        if not tile.even:
            yield replace(tile, prefetch=True)
    if work.threads > 1:
        yield replace(tile, split="blocks")
