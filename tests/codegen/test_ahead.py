"""Asking for later weights: what is asked for is what is read, and it changes no number."""

from __future__ import annotations

import re

import pytest
import torch

from fxprune.codegen import ahead
from fxprune.codegen.ahead import look_ahead
from fxprune.codegen.build import Library
from fxprune.codegen.cpu.ahead import END, FIELDS, FIRST, PAIR, RATE, UNITS
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.kernel import BoundKernel
from fxprune.codegen.memory import Pool
from fxprune.codegen.reading import blocks_read, pairs_read, tiles_in_turn
from fxprune.codegen.target import parse_target
from fxprune.codegen.workload import LINE_CELLS
from tests.codegen.suite import TOLERANCE, Buffers, Case, Suite, conv, draw_pattern, in_order, largest_error, linear

MARK = 7.0
SLACK = 2**16
"""Cells behind the last weights: a block's columns may ask past the end."""

_QUESTION = re.compile(
    r'T\.evaluate\(T\.call_llvm_intrin\("void", "llvm\.prefetch", T\.address_of\(W\[(.*)\]\), .*\)\)'
)

SQUARE = conv(20, 48, (9, 10), 3, padding=1)
CASES = {
    "rows_by_pixels": Case(SQUARE, RowsSchedule(8, 1, (1, 5), "pixels", 2), draw_pattern(SQUARE, (8,))),
    "rows_by_blocks": Case(SQUARE, RowsSchedule(8, 2, (1, 3), "blocks"), draw_pattern(SQUARE, (16,))),
    "pixels_by_pixels": Case(SQUARE, PixelsSchedule(8, 2, 1, "pixels"), draw_pattern(SQUARE, (2,))),
    "pixels_by_blocks": Case(SQUARE, PixelsSchedule(8, 4, 1, "blocks"), draw_pattern(SQUARE, (4,))),
    "pixels_in_parts": Case(SQUARE, PixelsSchedule(8, 2, 1, "pixels", channels=7), draw_pattern(SQUARE, (2,))),
    "pixels_by_images": Case(
        s := conv(20, 48, (5, 9), 3, padding=1, batch=3), PixelsSchedule(8, 2, 1, "pixels"), draw_pattern(s, (2,))
    ),
    "linear": Case(s := linear(1, 300, 64), RowsSchedule(8, 2, (1, 1), "blocks"), draw_pattern(s, (16,))),
    "rows_by_long_pixels": Case(SQUARE, RowsSchedule(8, 2, (1, 5), "pixels", 0), draw_pattern(SQUARE, (16,))),
    "pixels_by_long_pixels": Case(SQUARE, PixelsSchedule(8, 4, 1, "pixels", by_block=True), draw_pattern(SQUARE, (4,))),
    "pixels_by_long_images": Case(
        s := conv(20, 48, (5, 9), 3, padding=1, batch=3),
        PixelsSchedule(8, 2, 1, "pixels", by_block=True),
        draw_pattern(s, (2,)),
    ),
}
IN_TURN = {
    "rows_by_pixels": 2,
    "rows_by_blocks": 36,
    "rows_by_long_pixels": 9,
    "pixels_by_blocks": 13,
    "pixels_by_long_pixels": 6,
    "pixels_by_long_images": 7,
}
"""Tiles that run under one block, of the cases that ask for weights of their own."""


class Row:
    """All cases bound in a row, packed into one pool."""

    def __init__(self, suite: Suite, names: list[str], *, marking: bool, last: int = 2**30) -> None:
        """Bind them; questions for a cell behind `last` of a kernel's values mark that one."""
        self.kernels = [suite.kernels[name] for name in names]
        scripts = {name: kernel.script(name) for name, kernel in zip(names, self.kernels, strict=True)}
        if marking:
            mark = rf"W[T.min(\1, {last})] = T.float32({MARK})"
            scripts = {name: _QUESTION.sub(mark, text) for name, text in scripts.items()}
        library = Library(scripts, parse_target("cpu", 2))
        pool = Pool(sum(kernel.pool_cells for kernel in self.kernels) + SLACK)
        self.buffers = [
            Buffers.of(kernel, suite.tensors[name]) for name, kernel in zip(names, self.kernels, strict=True)
        ]
        self.bound = [
            BoundKernel(library[name], kernel, found.x, found.y, found.residual, found.scratch, pool)
            for name, kernel, found in zip(names, self.kernels, self.buffers, strict=True)
        ]
        look_ahead(list(zip(self.kernels, self.bound, strict=True)))


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite(CASES)


def test_asking_changes_no_number(suite: Suite) -> None:
    row = Row(suite, list(CASES), marking=False)
    asked = sum(int(bound.arrays[-1].count_nonzero()) for bound in row.bound)
    assert asked >= 2 * 2 * (len(CASES) - 1), "every thread of every kernel but the last asks for something"
    for name, kernel, bound, found in zip(CASES, row.kernels, row.bound, row.buffers, strict=True):
        bound.run()
        wanted = suite.tensors[name].reference(CASES[name])
        assert largest_error(in_order(kernel, found.y), wanted) <= TOLERANCE, name


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("rows_by_pixels", "pixels_by_blocks"),
        ("rows_by_blocks", "pixels_by_pixels"),
        ("pixels_by_pixels", "rows_by_pixels"),
        ("pixels_by_blocks", "rows_by_pixels"),
        ("pixels_by_images", "rows_by_blocks"),
    ],
)
def test_a_kernel_asks_for_what_every_thread_of_the_next_one_reads(
    suite: Suite, first: str, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions are replaced by stores of a mark, so the memory shows what was asked for."""
    monkeypatch.setattr(ahead, "_MACS_PER_LINE", 1)
    row = Row(suite, [first, second], marking=True)
    later = row.bound[1]
    before = [array.clone() for array in later.arrays[:2]]
    row.bound[0].run()
    for array, old in zip(later.arrays[:2], before, strict=True):
        assert not old.view(torch.float32).eq(MARK).any()
        lines = torch.split(array.view(torch.float32).eq(MARK), LINE_CELLS)
        missing = sum(not line.any() for line in lines)
        assert not missing, f"{missing} of {len(lines)} lines were not asked for"


def test_without_time_the_kernels_before_are_asked(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread asks for at most the lines it has time for, and the first lines come last."""
    names = ["rows_by_pixels", "rows_by_blocks", "pixels_by_blocks"]
    row = Row(suite, names, marking=False)
    thread_macs = min(
        kernel.packed.stored * kernel.computed_pixels // 2 for kernel in row.kernels if kernel.packed is not None
    )
    monkeypatch.setattr(ahead, "_MACS_PER_LINE", thread_macs // 3)
    row = Row(suite, names, marking=False)
    near, far = (
        bound.arrays[0].data_ptr() + 4 * int(bound.arrays[-1].view(2, FIELDS)[0, FIRST])
        for bound in (row.bound[1], row.bound[0])
    )
    assert near == row.bound[2].arrays[0].data_ptr()
    assert far != near
    assert not row.bound[2].arrays[-1].any()


def test_a_kernel_asks_for_few_lines_a_pair_of_columns_and_a_part_of_the_cache_at_most(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "_MACS_PER_LINE", 1)
    monkeypatch.setattr(ahead, "_MOST_LINES", 3)
    row = Row(suite, list(CASES), marking=False)
    for bound in row.bound[:-1]:
        for fields in bound.arrays[-1].view(2, FIELDS):
            assert 0 < int(fields[END]) <= (3 + 1) * LINE_CELLS * UNITS
            assert 0 < int(fields[RATE]) <= PAIR * LINE_CELLS * UNITS


@pytest.mark.parametrize("name", IN_TURN)
def test_a_kernel_asks_for_its_own_blocks_behind_the_first(
    suite: Suite, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asked before it, and its tiles share a block: the first of them would wait for every line."""
    monkeypatch.setattr(ahead, "_LEAST_OWN", 1)
    kernel = suite.kernels[name]
    packed = kernel.packed
    assert packed is not None
    row = Row(suite, [name], marking=True, last=packed.values.size - 1)
    values = row.bound[0].arrays[0]
    assert tiles_in_turn(kernel, 0) == IN_TURN[name]
    row.bound[0].run()
    lines = [bool(line.any()) for line in torch.split(values.eq(MARK), LINE_CELLS)]
    whole = [False] * len(lines)
    for thread in range(2):
        first, stop = blocks_read(kernel, thread)
        end = int(packed.base[stop - 1]) + int(packed.length[stop - 1]) * packed.height
        for line in range(-(-int(packed.base[first + 1]) // LINE_CELLS), -(-end // LINE_CELLS)):
            whole[line] = True
    assert lines[0] is False, "the first block is read before anything can be asked for"
    missing = sum(wanted and not asked for wanted, asked in zip(whole, lines, strict=True))
    assert not missing, f"{missing} of {sum(whole)} lines were not asked for"


@pytest.mark.parametrize("name", ["linear", "pixels_by_pixels", "pixels_by_images"])
def test_a_kernel_whose_tiles_share_no_block_does_not_ask_for_its_own_weights(
    suite: Suite, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "_LEAST_OWN", 1)
    row = Row(suite, [name], marking=False)
    assert tiles_in_turn(row.kernels[0], 0) == 1
    assert not row.bound[0].arrays[-1].any()


def test_a_kernel_of_single_columns_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks with every pair of columns, and has none."""
    monkeypatch.setattr(ahead, "_LEAST_OWN", 1)
    pattern = draw_pattern(SQUARE, (16,), columns=1)
    suite = Suite({"single": Case(SQUARE, RowsSchedule(8, 2, (1, 3), "blocks"), pattern)})
    row = Row(suite, ["single"], marking=False)
    assert not pairs_read(row.kernels[0], 0)
    assert not row.bound[0].arrays[-1].any()


def test_a_kernel_asks_for_its_own_weights_as_fast_as_it_first_reads_them(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes over them again for every two of its nine tiles; later asks would find them in the cache."""
    monkeypatch.setattr(ahead, "_LEAST_OWN", 1)
    fields = Row(suite, ["rows_by_pixels"], marking=False).bound[0].arrays[-1].view(2, FIELDS)
    assert fields[:, RATE].tolist() == [PAIR * 8 * UNITS // 2] * 2


def test_a_kernel_goes_on_where_the_one_before_it_stopped(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_LEAST_OWN", 1)
    monkeypatch.setattr(ahead, "_MACS_PER_LINE", 1)
    name = "rows_by_blocks"
    packed = suite.kernels[name].packed
    assert packed is not None
    block = int(packed.base[1]) // LINE_CELLS
    for asked, wanted in ((block // 2, block), (block + 3, block + 3)):
        monkeypatch.setattr(ahead, "_MOST_LINES", asked)
        row = Row(suite, ["pixels_by_pixels", name], marking=False)
        assert int(row.bound[1].arrays[-1][FIRST]) == wanted * LINE_CELLS


def test_a_kernel_asks_for_its_own_weights_where_they_are_many_and_can_be_counted(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of a cell are counted in 32 bits."""
    name = "rows_by_blocks"
    assert not Row(suite, [name], marking=False).bound[0].arrays[-1].any(), "so few stay in the cache"
    monkeypatch.setattr(ahead, "_LEAST_OWN", 1)
    monkeypatch.setattr(ahead, "_MOST_OWN", 5)
    fields = Row(suite, [name], marking=False).bound[0].arrays[-1].view(2, FIELDS)
    assert fields[:, END].tolist() == [5 * LINE_CELLS * UNITS] * 2


def test_a_model_of_depthwise_layers_asks_for_nothing() -> None:
    look_ahead([])
