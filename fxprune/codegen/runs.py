"""Blocks of a row-lane kernel whose results are stored as whole vectors, the zero rows of a ragged block included.

A block of 30 neighbouring rows and two zero rows may write the two lanes too many over the channels after it, if those
are padding, or if the same thread computes their own blocks afterwards: what it leaves there does not stay. A kernel
that works in place would leave it in the residual of those blocks: it stores the real rows of its vectors only.
"""

from __future__ import annotations

import numpy as np

from fxprune.annotation import IndexArray
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.format import PackedWeight
from fxprune.codegen.workload import Workload


def first_channels(
    packed: PackedWeight, work: Workload, schedule: RowsSchedule, tiles: int, cut: IndexArray
) -> IndexArray:
    """Return the channel where each block's vectors begin, -1 for a block that is stored lane by lane, [B].

    Args:
        packed: The packed weight.
        work: The layer.
        schedule: Options of the kernel.
        tiles: Tiles of pixels.
        cut: First unit (block-major, tile-minor) of every thread where the threads share blocks, [threads + 1].
    """
    height = packed.height
    lanes = packed.rows.reshape(packed.blocks, height)
    room = min(layout.channels for layout in (work.y, work.residual) if layout is not None)
    owner = np.full(room + height, packed.blocks, dtype=np.int64)  # of padding: no block
    owner[packed.rows[packed.rows >= 0]] = np.repeat(np.arange(packed.blocks), packed.count)
    first = np.full(packed.blocks, -1, dtype=np.int32)
    for block, count in enumerate(packed.count):
        start, real = int(lanes[block, 0]), lanes[block, :count]
        if start + height > room or (np.diff(real) != 1).any():
            continue
        later = owner[start + count : start + height]
        later = later[later < packed.blocks]
        spills = bool(later.size) and not work.in_place
        if not spills or (later.min() > block and _is_one_thread(block, int(later.max()), schedule, tiles, cut)):
            first[block] = start
    return first


def _is_one_thread(block: int, last: int, schedule: RowsSchedule, tiles: int, cut: IndexArray) -> bool:
    """Whether one thread computes a tile's blocks from `block` to `last`, in this order."""
    if schedule.split == "pixels":
        return True
    begin, end = np.searchsorted(cut, [block * tiles, (last + 1) * tiles - 1], side="right")
    return bool(begin == end)
