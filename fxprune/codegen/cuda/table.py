"""The table of blocks that one launch works through: column lists padded to whole steps, longest first.

A step is `depth` columns, what a thread block brings into shared memory at once. A list that ends within a step goes on
with its last column and zero weights. Blocks are sorted by length, so that no long one starts when all others are done.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fxprune.annotation import IndexArray
from fxprune.codegen.format import Float32Array, PackedWeight


@dataclass(frozen=True, eq=False)
class BlockTable:
    """A packed weight as the kernel reads it.

    Attributes:
        values: Weights of all blocks, a block [steps * depth, height].
        columns: Positions in `PackedWeight.columns`, padded lists one after another.
        begin: First entry of `columns` of each block, [B].
        steps: Steps of each block, [B]; 0 for rows without any stored cell.
        base: First entry of `values` of each block, [B].
        rows: Output row of every lane, [B * height]; -1 marks a zero row.
        order: The block of the packed weight that each one was, [B].
    """

    values: Float32Array
    columns: IndexArray
    begin: IndexArray
    steps: IndexArray
    base: IndexArray
    rows: IndexArray
    order: IndexArray

    @property
    def blocks(self) -> int:
        """Number of blocks, B."""
        return int(self.begin.size)


def _pad_lists(packed: PackedWeight, depth: int) -> tuple[IndexArray, dict[int, int]]:
    """Return the padded lists as positions, and where the list that began at a position begins now."""
    lists: list[IndexArray] = []
    moved: dict[int, int] = {}
    cells = 0
    for begin, length in zip(packed.begin.tolist(), packed.length.tolist(), strict=True):
        if begin in moved or not length:
            continue
        moved[begin] = cells
        padded = -(-length // depth) * depth
        lists.append(np.minimum(np.arange(padded, dtype=np.int32), length - 1) + np.int32(begin))
        cells += padded
    return np.concatenate(lists) if lists else np.zeros(0, np.int32), moved


def make_table(packed: PackedWeight, depth: int) -> BlockTable:
    """Lay a packed weight out for kernels that take `depth` columns at once.

    Args:
        packed: The weight, packed to the height of the kernel's tile.
        depth: Columns of a step.
    """
    height = packed.height
    columns, moved = _pad_lists(packed, depth)
    steps = -(-packed.length // depth)
    order = np.argsort(-steps, kind="stable").astype(np.int32)
    base = np.concatenate(([0], np.cumsum(steps[order].astype(np.int64) * depth * height)))
    values = np.zeros(int(base[-1]), dtype=np.float32)
    for place, block in zip(base.tolist(), order.tolist(), strict=False):
        first, cells = int(packed.base[block]), int(packed.length[block]) * height
        values[place : place + cells] = packed.values[first : first + cells]
    begin = [moved.get(int(packed.begin[block]), 0) if packed.length[block] else 0 for block in order]
    return BlockTable(
        values=values,
        columns=columns,
        begin=np.asarray(begin, dtype=np.int32),
        steps=steps[order].astype(np.int32),
        base=base[:-1].astype(np.int32),
        rows=packed.rows.reshape(-1, height)[order].reshape(-1),
        order=order,
    )
