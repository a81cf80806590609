"""What each thread of a kernel reads of its packed weight: which blocks, how many pairs of columns, in which order."""

from __future__ import annotations

import numpy as np

from fxprune.codegen.cpu import pixel_tiles, row_walk
from fxprune.codegen.cpu.ahead import PAIR
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.kernel import LayerKernel
from fxprune.codegen.shares import list_units


def blocks_read(kernel: LayerKernel, thread: int) -> tuple[int, int]:
    """Return the first block whose values a thread reads, and one past the last."""
    assert kernel.packed is not None
    assert kernel.cut is not None
    schedule = _schedule(kernel)
    if schedule.split == "pixels" or _shares_images(kernel):
        return 0, kernel.packed.blocks
    tiles = _tiles(kernel)
    return int(kernel.cut[thread]) // tiles, -(-int(kernel.cut[thread + 1]) // tiles)


def pairs_read(kernel: LayerKernel, thread: int) -> int:
    """Count the pairs of columns that a thread multiplies, once for every tile; of one image where all share it."""
    assert kernel.packed is not None
    assert kernel.cut is not None
    pairs, tiles, schedule = kernel.packed.over_parts(kernel.packed.length // PAIR), _tiles(kernel), _schedule(kernel)
    if _shares_images(kernel):
        return len(range(thread, kernel.work.shape.batch, kernel.work.threads)) * tiles * int(pairs.sum())
    if schedule.split == "blocks" or isinstance(schedule, PixelsSchedule):
        units = list_units(pairs, np.ones(tiles, np.int32), schedule.split)
        return int(units[kernel.cut[thread] : kernel.cut[thread + 1]].sum())
    return _own_tiles(kernel, thread) * int(pairs.sum())


def tiles_in_turn(kernel: LayerKernel, thread: int) -> int:
    """Count the tiles that a thread computes under one block before it goes on to the next one, at most."""
    schedule = _schedule(kernel)
    if isinstance(schedule, RowsSchedule) and schedule.split == "pixels":
        own = _own_tiles(kernel, thread)
        return min(schedule.chunk or own, own)
    if schedule.split == "blocks" and not _shares_images(kernel):
        return _tiles(kernel)
    assert isinstance(schedule, PixelsSchedule)
    if not schedule.by_block:
        return 1
    return _tiles(kernel) if _shares_images(kernel) else _own_tiles(kernel, thread)


def _shares_images(kernel: LayerKernel) -> bool:
    """Whether every thread computes whole images."""
    return isinstance(kernel.schedule, PixelsSchedule) and kernel.work.shape.batch >= kernel.work.threads


def _own_tiles(kernel: LayerKernel, thread: int) -> int:
    """Count the tiles of a thread where the threads share pixels; of planes about so many."""
    tiles, threads = _tiles(kernel), kernel.work.threads
    return tiles * (thread + 1) // threads - tiles * thread // threads


def _tiles(kernel: LayerKernel) -> int:
    schedule = _schedule(kernel)
    if isinstance(schedule, RowsSchedule):
        return row_walk.tiles_of(kernel.work, schedule)
    return pixel_tiles.tiles_of(kernel.work, schedule)


def _schedule(kernel: LayerKernel) -> RowsSchedule | PixelsSchedule:
    assert isinstance(kernel.schedule, RowsSchedule | PixelsSchedule)
    return kernel.schedule
