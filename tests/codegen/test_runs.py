"""Which blocks of a row-lane kernel store whole vectors: none whose zero rows would stay over another's results."""

from __future__ import annotations

import numpy as np
import pytest

from fxprune.annotation import RowGroup, RowGroupPattern
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.format import pack
from fxprune.codegen.runs import first_channels
from fxprune.codegen.workload import Layout, Workload
from tests.codegen.suite import Split, conv

COLUMNS = np.arange(3, dtype=np.int32)


def _first(
    runs: list[range],
    room: int,
    *,
    residual: int | None = None,
    split: Split = "pixels",
    cut: tuple[int, ...] = (0, 1, 99),
) -> list[int]:
    """Return the first channels of blocks of four rows, one block a run, two tiles of pixels."""
    count = sum(len(run) for run in runs)
    shape = conv(3, count, (2, 2))
    pattern = RowGroupPattern((count, 3), tuple(RowGroup(np.array(run, dtype=np.int32), COLUMNS) for run in runs))
    packed = pack(np.ones((count, 3), np.float32), pattern, 4)
    x, y = Layout("nhwc", 1, 3, (1, 2, 2)), Layout("nhwc", 1, room, (1, 2, 2))
    added = None if residual is None else Layout("nhwc", 1, residual, (1, 2, 2))
    work = Workload(shape, x, y, added, None, (), 2)
    schedule = RowsSchedule(4, 1, (1, 2), split)
    found: list[int] = first_channels(packed, work, schedule, 2, np.array(cut, dtype=np.int32)).tolist()
    return found


def test_a_ragged_block_writes_over_the_one_after_it() -> None:
    assert _first([range(3), range(3, 6), range(6, 10)], 10) == [0, 3, 6]


def test_a_ragged_last_block_needs_room() -> None:
    assert _first([range(4), range(4, 7)], 7) == [0, -1]
    assert _first([range(4), range(4, 7)], 8) == [0, 4]


def test_a_residual_needs_room_too() -> None:
    assert _first([range(3)], 4, residual=3) == [-1]
    assert _first([range(3)], 4, residual=4) == [0]


def test_a_block_never_writes_over_one_before_it() -> None:
    assert _first([range(3, 7), range(3)], 8) == [3, -1]


def test_rows_that_are_no_neighbours_are_stored_one_by_one() -> None:
    assert _first([range(0, 8, 2), range(1, 9, 2)], 16) == [-1, -1]


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ((0, 6, 6), [0, 3, 6]),  # one thread has all
        ((0, 2, 6), [-1, 3, 6]),  # the first block's neighbour is the other thread's
        ((0, 3, 6), [-1, -1, 6]),  # the second block is shared
        ((0, 5, 6), [0, -1, 6]),  # the third block is shared
    ],
)
def test_threads_that_share_blocks_never_write_over_each_other(cut: tuple[int, ...], expected: list[int]) -> None:
    assert _first([range(3), range(3, 6), range(6, 9)], 12, split="blocks", cut=cut) == expected
