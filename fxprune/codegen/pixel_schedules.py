"""Which pixel-lane schedules a layer has, which of them are worth trying, and how long each is predicted to take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from fxprune.annotation import RowGroupPattern
from fxprune.codegen.cpu import pixel_tiles
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.format import padded_stored
from fxprune.codegen.schedules import CACHE_CELLS, CLOSE, Candidate, efficiency, predict_us, waiting
from fxprune.codegen.target import CpuTarget
from fxprune.codegen.workload import Workload

_LEAST_LANES = 4
"""Narrowest vector."""

_TILES = {1: (8, 4, 14), 2: (4, 8), 4: (4, 2), 8: (3, 2)}
"""Vectors of pixels in a tile, best first, for each number of rows; as many as have room in the registers."""

_EVERY_HEIGHT = (1, 2, 4, 6, 8, 12, 16)
"""Rows of a block in the whole space."""

_GAPLESS_COST = 1.15
"""What gapless planes cost: of 3x3 layers at 14x14 they save an eighth of the lanes and no time, at 7x7 a quarter and a
fifth."""

_TAIL_REGISTERS = 2
"""Registers that a tail takes: its accumulator and its input."""


_L1_LINES = 512
"""Cache lines of its input that a tile may find in the L1 cache, 32 kB; of 48 kB this was also the best."""

_EVERY_SHARE = (256, 512, 1024)
"""Such numbers in the whole space."""


def _widest_lanes(work: Workload, target: CpuTarget) -> int:
    """Return the widest vector that fits an image's run; narrower ones waste fewer lanes, yet were slower."""
    lanes = target.lanes
    while lanes > _LEAST_LANES and not pixel_tiles.most_vectors(work, lanes):
        lanes //= 2
    return lanes


def _most_vectors(work: Workload, lanes: int, height: int, target: CpuTarget) -> int:
    """Return the most vectors of pixels in a tile that fit an image's run and the registers."""
    return min(pixel_tiles.most_vectors(work, lanes), (target.registers - 1) // (height + 1))


def pixels_candidates(work: Workload, pattern: RowGroupPattern, target: CpuTarget) -> Iterator[Candidate]:
    """Yield pixel-lane schedules for a layer.

    Args:
        work: The layer; both layouts are "nchw".
        pattern: Its row groups.
        target: The CPU.
    """
    if not pixel_tiles.supports(work):
        return
    sized = sorted((padded_stored(pattern, height) / efficiency(height), height) for height in _TILES)
    lanes = _widest_lanes(work, target)
    for cost, height in sized:
        if cost > CLOSE * sized[0][0]:
            continue
        cells, most = padded_stored(pattern, height), _most_vectors(work, lanes, height, target)
        for vectors in dict.fromkeys(min(count, most) for count in _TILES[height] if most):
            for tile in _worth_trying(work, _fitting_tiles(work, lanes, height, vectors, target)):
                predicted = predict_us(cells, _cost(work, tile), height, target)
                orders = _orders(work, tile, _in_parts(work, tile, (_L1_LINES,)) or [tile])
                yield from (Candidate(schedule, predicted) for schedule in orders)


def pixels_space(work: Workload, pattern: RowGroupPattern, target: CpuTarget) -> Iterator[Candidate]:
    """Yield every pixel-lane schedule of a layer: rows 1 to 16, every tile that fits the registers, every order.

    The prediction adds what a tile with few accumulators loses to the latency of the multiply-adders. The arguments are
    those of `pixels_candidates`.
    """
    if not pixel_tiles.supports(work):
        return
    lanes = _widest_lanes(work, target)
    for height in _EVERY_HEIGHT:
        cells = padded_stored(pattern, height)
        for vectors in range(1, _most_vectors(work, lanes, height, target) + 1):
            for tile in _fitting_tiles(work, lanes, height, vectors, target):
                predicted = waiting(vectors * height) * predict_us(cells, _cost(work, tile), height, target)
                orders = _orders(work, tile, [tile, *_in_parts(work, tile, _EVERY_SHARE)])
                yield from (Candidate(schedule, predicted) for schedule in orders)


def _fitting_tiles(work: Workload, lanes: int, height: int, vectors: int, target: CpuTarget) -> list[PixelsSchedule]:
    """Return the tiles of so many vectors, the plain one first, with a tail and of gapless planes where those fit."""
    plain = PixelsSchedule(lanes, height, vectors, "pixels")
    taps = [plain, replace(plain, gapless=True)] if work.shape.kernel[2] > 1 else [plain]
    room = vectors * (height + 1) + 1 + _TAIL_REGISTERS <= target.registers and lanes % height == 0
    tails = [replace(tile, tail=1) for tile in taps] if room else []
    return [tile for tile in (*taps, *tails) if pixel_tiles.fits(work, tile)]


def _worth_trying(work: Workload, tiles: Sequence[PixelsSchedule]) -> list[PixelsSchedule]:
    """Return the cheapest tile, and the plain one if its vectors cross no cache line where the image's would."""
    cheapest = min(tiles, key=lambda tile: _cost(work, tile))
    plain = tiles[0]
    return [cheapest, plain] if plain != cheapest and pixel_tiles.reads_behind(work, plain) else [cheapest]


def _cost(work: Workload, schedule: PixelsSchedule) -> float:
    """Return the pixels that take as long as those computed: of a tail, one takes as long as a vector of every row."""
    tails = pixel_tiles.tiles_of(work, schedule) * schedule.tail
    computed = pixel_tiles.computed_pixels(work, schedule) + tails * (schedule.lanes / schedule.rows - 1)
    return computed * (_GAPLESS_COST if schedule.gapless else 1.0)


def _in_parts(work: Workload, tile: PixelsSchedule, shares: Sequence[int]) -> list[PixelsSchedule]:
    """Return the schedules that copy as many channels at a time as fit each of some numbers of cache lines."""
    parts = (pixel_tiles.in_parts(work, tile, lines) for lines in shares)
    return list(dict.fromkeys(schedule for schedule in parts if schedule))


def _orders(work: Workload, tile: PixelsSchedule, by_tile: Sequence[PixelsSchedule]) -> list[PixelsSchedule]:
    """Return what threads may share within an image, and in which order.

    A batch as large as the threads is shared by image. Outputs that stay in the caches need not be written in long
    runs; alone a layer may then be as fast block by block, yet not in a model, where its input lies further away.

    Args:
        work: The layer.
        tile: The tile.
        by_tile: The schedules that compute a tile for all blocks before the next one.
    """
    by_block, sharing_blocks = replace(tile, by_block=True), replace(tile, split="blocks")
    if work.shape.batch >= work.threads:
        return [*by_tile, by_block]
    if pixel_tiles.tiles_of(work, tile) < 2 * work.threads:
        return [sharing_blocks, *(schedule for schedule in by_tile if schedule.channels)]
    if work.y.numel > work.threads * CACHE_CELLS:
        return [*by_tile, by_block, sharing_blocks]
    return [*by_tile, sharing_blocks]
