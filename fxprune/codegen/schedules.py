"""Which schedules are worth trying for a layer, and how long each is predicted to take.

The cost model ranks: t = 2 * padded cells * computed pixels / (rate * E), with E the share of the dense rate that a
tile of that height reaches (`target.EFFICIENCY`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fxprune.annotation import RowGroupPattern
from fxprune.codegen.cpu import pixel_tiles, row_walk
from fxprune.codegen.cpu.depthwise import DepthwiseSchedule, is_depthwise
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.cpu.winograd_plan import WinogradSchedule, phase_products
from fxprune.codegen.format import full_pattern, in_order, is_scattered, packed_lanes, padded_stored
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

_NARROW_SHARE = 0.72
"""Share of its efficiency that a row-lane kernel keeps whose vectors are half as wide as the processor's: it loads an
input for every multiply-add."""

_LATENCY = 12
"""Accumulators that keep the multiply-adders busy: latency 4 times two a cycle, and some slack."""

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

_CLOSE = 1.1
"""Block heights predicted within this factor of the best are worth a measurement."""

_SCATTERED = 3.0
"""Blocks of neighbouring rows are worth a measurement if they are predicted within this factor of the best blocks whose
rows would be stored one by one."""

_CACHE_CELLS = 2**18
"""float32 cells, 1 MB, of an activation that no longer stays in the L2 cache of a core."""

_PREFETCH_PIXELS = 8
"""Largest tile for prefetching, pixels: more lines at once than this evict each other from the L1 cache."""

_NARROW_PIXELS = 16
"""Largest tile of blocks narrower than a vector that is worth a measurement beside the one of the least waste: every
multiply-add loads an input of its own, and with fewer pixels more of them are still in the L1 cache."""

_LEAST_LANES = 4
"""Narrowest vector of a pixel-lane kernel."""

_PIXEL_TILES = {1: (8, 4, 14), 2: (4, 8), 4: (4, 2), 8: (3, 2)}
"""Vectors of pixels in a tile, best first, for each number of rows; as many as have room in the registers."""


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


def _efficiency(height: int) -> float:
    return next((share for rows, share in reversed(EFFICIENCY) if rows <= height), EFFICIENCY[0][1])


def predict_us(cells: int, pixels_computed: int, height: int, target: CpuTarget) -> float:
    """Predict the time of a kernel, microseconds.

    Args:
        cells: Stored cells, zero rows of ragged blocks included.
        pixels_computed: Output positions computed, wasted ones included.
        height: Rows of a block.
        target: The CPU.
    """
    return 2 * cells * pixels_computed / (peak_gflops(target) * _efficiency(height)) / 1e3 + LAUNCH_US


def waiting(accumulators: int) -> float:
    """Return how many times longer a tile takes whose multiply-adders wait for their own results."""
    return max(1.0, _LATENCY / accumulators)


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
        efficiency = _efficiency(lanes * vectors) * narrow_share(lanes, target)
        found.append((cells / efficiency * waiting(best.pixels * vectors), (lanes, vectors), cells))
    return sorted(found, key=lambda one: (one[0], -one[1][0] * one[1][1]))


def narrow_share(lanes: int, target: CpuTarget) -> float:
    """Return the share of its efficiency that a row-lane kernel keeps whose vectors have so many lanes."""
    return _NARROW_SHARE if lanes < target.lanes else 1.0


def _row_tiles(work: Workload, block: tuple[int, int], target: CpuTarget) -> list[RowsSchedule]:
    """Return the tiles of one block shape, (lanes, vectors), that fit the registers, the cheapest first.

    Every tile reads its weights and the input around it, so a pixel is cheaper in a larger tile, and with taps in a
    square one; of equals, those of one line go first.
    """
    vectors = block[1]
    most = max(1, (target.registers - _SPARE_REGISTERS) // vectors)
    fitting = fitting_tiles(work, block, most)
    enough = [tile for tile in fitting if tile.pixels * vectors >= min(most * vectors, _LATENCY)] or fitting

    def cost(tile: RowsSchedule) -> tuple[float, int, int]:
        reading = _WEIGHTS_PIXELS + _INPUT_PIXELS * row_walk.pixels_read(work, tile)
        total = row_walk.computed_pixels(work, tile) + row_walk.tiles_of(work, tile) * reading
        return total, len(row_walk.find_forms(work, tile)), tile.tile[0]

    return sorted(enough, key=cost)


def fitting_tiles(work: Workload, block: tuple[int, int], most: int) -> list[RowsSchedule]:
    """Return every tile of one block shape, (lanes, vectors), that has so many pixels at most and fits the layer."""
    tiles = [
        RowsSchedule(*block, (ph, pw), "pixels", even=even)
        for ph, even in ((1, False), (2, False), (4, False), (1, True))
        for pw in range(1, most // ph + 1)
    ]
    return [tile for tile in tiles if row_walk.fits(work, tile)]


def refit(schedule: Schedule, work: Workload, target: CpuTarget) -> Schedule:
    """Return the schedule with a tile that fits the layer's final layouts.

    Args:
        schedule: A schedule chosen on trial layouts.
        work: The layer as it will run.
        target: The CPU.
    """
    if not isinstance(schedule, RowsSchedule) or row_walk.fits(work, schedule):
        return schedule
    best = _row_tiles(work, (schedule.lanes, schedule.vectors), target)[0]
    return replace(schedule, tile=best.tile, even=best.even, prefetch=schedule.prefetch and not best.even)


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
        if cost <= _CLOSE * best:
            yield from _rows_variants(work, shape, cells, target)
    cost, (lanes, vectors), cells = min(_neighbours(work, pattern, vectors, target) for vectors in (2, 1))
    scattered = is_scattered(pattern)
    if not scattered and cells == padded_stored(pattern, lanes * vectors):
        return
    if cost <= (_SCATTERED if scattered and channels_in_order else _CLOSE) * best:
        for candidate in _rows_variants(work, (lanes, vectors), cells, target):
            assert isinstance(candidate.schedule, RowsSchedule)
            yield replace(candidate, schedule=replace(candidate.schedule, ordered=True))


def _neighbours(
    work: Workload, pattern: RowGroupPattern, vectors: int, target: CpuTarget
) -> tuple[float, tuple[int, int], int]:
    """Return (cost, (lanes, vectors), padded cells) of blocks of neighbouring rows."""
    height = target.lanes * vectors
    cells = padded_stored(in_order(pattern, height, work.shape.groups), height)
    return cells / _efficiency(height), (target.lanes, vectors), cells


def _rows_variants(work: Workload, shape: tuple[int, int], cells: int, target: CpuTarget) -> Iterator[Candidate]:
    """Yield the schedules for one block shape, (lanes, vectors), that stores so many cells."""
    lanes, vectors = shape
    tiles = _row_tiles(work, shape, target)
    best, count = tiles[0], row_walk.tiles_of(work, tiles[0])
    predicted = predict_us(cells, row_walk.computed_pixels(work, best), lanes * vectors, target)
    predicted /= narrow_share(lanes, target)
    shared = [best] if count >= work.threads else []
    narrow = next((tile for tile in tiles if tile.pixels <= _NARROW_PIXELS), best)
    if lanes < target.lanes and narrow != best and row_walk.tiles_of(work, narrow) >= work.threads:
        shared.append(narrow)
    if count >= work.threads and max(work.x.numel, work.y.numel) > _CACHE_CELLS:
        small = next((tile for tile in tiles if tile.pixels <= _PREFETCH_PIXELS and not tile.even), None)
        shared += [replace(small, prefetch=True)] if small else []
    if count >= _CHUNK * work.threads and cells > _WEIGHT_CELLS:
        shared.append(replace(best, chunk=_CHUNK))
    if work.threads > 1 and count < 64 * work.threads:
        shared.append(replace(best, split="blocks"))
    yield from (Candidate(schedule, predicted) for schedule in shared)


def pixel_lanes(work: Workload, target: CpuTarget) -> int:
    """Return the widest vector that fits an image's run; narrower ones waste fewer lanes, yet were slower."""
    lanes = target.lanes
    while lanes > _LEAST_LANES and not pixel_tiles.most_vectors(work, lanes):
        lanes //= 2
    return lanes


def most_pixel_vectors(work: Workload, lanes: int, height: int, target: CpuTarget) -> int:
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
    sized = sorted((padded_stored(pattern, height) / _efficiency(height), height) for height in _PIXEL_TILES)
    lanes = pixel_lanes(work, target)
    for cost, height in sized:
        if cost > _CLOSE * sized[0][0]:
            continue
        cells = padded_stored(pattern, height)
        most = most_pixel_vectors(work, lanes, height, target)
        for vectors in dict.fromkeys(min(count, most) for count in _PIXEL_TILES[height] if most):
            for schedule in pixel_schedules(work, lanes, height, vectors):
                predicted = predict_us(cells, pixel_tiles.computed_pixels(work, schedule), height, target)
                yield Candidate(schedule, predicted)


def pixel_schedules(work: Workload, lanes: int, height: int, vectors: int) -> list[PixelsSchedule]:
    """Return the schedules of one tile: what threads may share within an image, and in which order.

    A batch as large as the threads is shared by image. Outputs that stay in the caches need not be written in long
    runs; alone a layer may then be as fast block by block, yet not in a model, where its input lies further away.
    """
    by_pixels = PixelsSchedule(lanes, height, vectors, "pixels")
    by_block, sharing_blocks = replace(by_pixels, by_block=True), replace(by_pixels, split="blocks")
    if work.shape.batch >= work.threads:
        return [by_pixels, by_block]
    if pixel_tiles.tiles_of(work, by_pixels) < 2 * work.threads:
        return [sharing_blocks]
    if work.y.numel > work.threads * _CACHE_CELLS:
        return [by_pixels, by_block, sharing_blocks]
    return [by_pixels, sharing_blocks]
