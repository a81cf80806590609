"""The packed form of a sparse weight: blocks of rows that share a column list.

A row group taller than a kernel's tile is cut into blocks of `height` rows that share one column list; a ragged last
block is filled with zero rows. Rows that no group holds become blocks without columns, so that every output channel
gets its bias and activation. Values of a block lie as [C, height], one column after another.

Kernels that multiply a part of the columns with all rows before the next part get every block once for each part, all
blocks of the first part first.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxprune.annotation import IndexArray, RowGroup, RowGroupPattern

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight packed for kernels whose tile is `height` rows.

    Invariant (tested): `unpack() == weight * covered cells of the pattern`.

    Attributes:
        pattern: Which cells are stored.
        height: Rows of a block, zero rows of ragged blocks included.
        values: Values of all blocks, [sum of length * height].
        columns: Column lists of all groups, one after another.
        begin: First entry of `columns` of each block, [B]; with P parts every block is here P times.
        length: Columns of each block, [B]; 0 for rows without any stored cell.
        base: First entry of `values` of each block, [B].
        rows: Output row of every lane, [B * height]; -1 marks a zero row.
        count: Real rows of each block, [B].
        parts: Parts of the columns, P.
    """

    pattern: RowGroupPattern
    height: int
    values: Float32Array
    columns: IndexArray
    begin: IndexArray
    length: IndexArray
    base: IndexArray
    rows: IndexArray
    count: IndexArray
    parts: int = 1

    @property
    def blocks(self) -> int:
        """Number of blocks, B, those of every part."""
        return int(self.begin.size)

    def over_parts(self, per_block: IndexArray) -> IndexArray:
        """Add up a value of every block over the parts, [B] -> [B / P]."""
        added: IndexArray = per_block.reshape(self.parts, -1).sum(axis=0, dtype=np.int32)
        return added

    @property
    def size_bytes(self) -> int:
        """Bytes of values and indices."""
        arrays = (self.values, self.columns, self.begin, self.length, self.base, self.rows, self.count)
        return sum(int(array.nbytes) for array in arrays)

    @property
    def stored(self) -> int:
        """Stored cells, zero rows of ragged blocks included: what a kernel really multiplies."""
        return int(self.values.size)

    def per_lane(self, vector: Float32Array) -> Float32Array:
        """Spread one value per output row over the lanes of the blocks, [O] -> [B * height]; zero rows get 0."""
        return np.where(self.rows >= 0, vector[np.maximum(self.rows, 0)], np.float32(0)).astype(np.float32)

    def unpack(self) -> Float32Array:
        """Return the stored weight as a dense array, [O, K]."""
        dense = np.zeros(self.pattern.shape, dtype=np.float32)
        for block in range(self.blocks):
            length, count = int(self.length[block]), int(self.count[block])
            begin, base = int(self.begin[block]), int(self.base[block])
            cells = self.values[base : base + length * self.height].reshape(length, self.height)
            rows = self.rows[block * self.height : block * self.height + count]
            dense[np.ix_(rows, self.columns[begin : begin + length])] = cells[:, :count].T
        return dense


def _row_lists(pattern: RowGroupPattern) -> list[tuple[IndexArray, IndexArray]]:
    """List (rows, columns) of every group, then the rows of no group with an empty column list."""
    lists = [(group.rows, group.columns) for group in pattern.groups]
    free = np.ones(pattern.shape[0], dtype=bool)
    for rows, _ in lists:
        free[rows] = False
    rest = np.flatnonzero(free).astype(np.int32)
    if rest.size:
        lists.append((rest, np.zeros(0, dtype=np.int32)))
    return lists


def _part_lists(pattern: RowGroupPattern, part_columns: int) -> list[list[tuple[IndexArray, IndexArray]]]:
    """List (rows, columns) of every group and of the rows of no group, for each part of so many columns."""
    starts = range(0, max(1, pattern.shape[1]), max(1, part_columns))
    lists = _row_lists(pattern)
    return [
        [(rows, columns[slice(*np.searchsorted(columns, (first, first + part_columns)))]) for rows, columns in lists]
        for first in starts
    ]


def _pack_rows(weight: Float32Array, rows: IndexArray, columns: IndexArray, height: int) -> Float32Array:
    """Return the blocks of one group as one array, [blocks, C, height]."""
    blocks = -(-rows.size // height)
    cells = np.zeros((blocks * height, columns.size), dtype=np.float32)
    cells[: rows.size] = weight[rows[:, None], columns[None, :]]
    return cells.reshape(blocks, height, columns.size).transpose(0, 2, 1)


def pack(weight: Float32Array, pattern: RowGroupPattern, height: int, part_columns: int = 0) -> PackedWeight:
    """Pack a weight for kernels that compute `height` rows at once.

    Args:
        weight: The 2-D view, [O, K].
        pattern: The cells to store; no group crosses a convolution group.
        height: Rows of one block.
        part_columns: Columns of the 2-D view in a part; 0 = all of them.
    """
    values, columns, begin, length, base, rows, count = [], [], [], [], [], [], []
    stored, position = 0, 0
    lists = _part_lists(pattern, part_columns or pattern.shape[1])
    for group_rows, group_columns in itertools.chain.from_iterable(lists):
        cells = _pack_rows(weight, group_rows, group_columns, height)
        for block in range(cells.shape[0]):
            part = group_rows[block * height : (block + 1) * height]
            begin.append(position)
            length.append(group_columns.size)
            base.append(stored + block * group_columns.size * height)
            rows.append(np.pad(part, (0, height - part.size), constant_values=-1))
            count.append(part.size)
        values.append(cells.reshape(-1))
        columns.append(group_columns)
        stored += cells.size
        position += group_columns.size
    as_index = [np.asarray(array, dtype=np.int32) for array in (begin, length, base, count)]
    return PackedWeight(
        pattern=pattern,
        height=height,
        values=np.concatenate(values) if values else np.zeros(0, dtype=np.float32),
        columns=np.concatenate(columns) if columns else np.zeros(0, dtype=np.int32),
        begin=as_index[0],
        length=as_index[1],
        base=as_index[2],
        rows=np.concatenate(rows).astype(np.int32),
        count=as_index[3],
        parts=len(lists),
    )


def full_pattern(shape: tuple[int, int], conv_groups: int) -> RowGroupPattern:
    """Return one group of all cells for every convolution group.

    Args:
        shape: Rows and columns of the 2-D view.
        conv_groups: Groups of the convolution.
    """
    columns = np.arange(shape[1], dtype=np.int32)
    rows = np.arange(shape[0], dtype=np.int32).reshape(conv_groups, -1)
    return RowGroupPattern(shape, tuple(RowGroup(part, columns) for part in rows))


def in_order(pattern: RowGroupPattern, height: int, conv_groups: int) -> RowGroupPattern:
    """Return a pattern of neighbouring rows, `height` at a time, each group with all columns that one of its rows has.

    It stores more cells, and a kernel stores its results as whole vectors.

    Args:
        pattern: Any row groups.
        height: Rows of a group; the last of a convolution group may have fewer.
        conv_groups: Groups of the convolution, which no row group crosses.
    """
    covered, per_group = pattern.covered(), pattern.shape[0] // conv_groups
    starts = [
        first for start in range(0, pattern.shape[0], per_group) for first in range(start, start + per_group, height)
    ]
    ends = [min(first + height, (first // per_group + 1) * per_group) for first in starts]
    blocks = [np.arange(first, end, dtype=np.int32) for first, end in zip(starts, ends, strict=True)]
    lists = [(rows, np.flatnonzero(covered[rows].any(axis=0)).astype(np.int32)) for rows in blocks]
    return RowGroupPattern(pattern.shape, tuple(RowGroup(rows, columns) for rows, columns in lists if columns.size))


def is_scattered(pattern: RowGroupPattern) -> bool:
    """Whether the rows of some group are no neighbours."""
    return any(int(group.rows[-1]) - int(group.rows[0]) >= group.height for group in pattern.groups)


def padded_stored(pattern: RowGroupPattern, height: int) -> int:
    """Count the cells that `pack` would store at this height, without packing."""
    return sum(-(-group.height // height) * height * int(group.columns.size) for group in pattern.groups)


def packed_lanes(pattern: RowGroupPattern, height: int) -> int:
    """Count the lanes of all blocks, those of rows without stored cells included."""
    grouped = sum(group.height for group in pattern.groups)
    blocks = sum(-(-group.height // height) for group in pattern.groups)
    return (blocks + -(-(pattern.shape[0] - grouped) // height)) * height
