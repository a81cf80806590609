"""Gathered-column kernels against torch in float64: shapes, patterns, epilogues, schedules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fxprune.annotation import RowGroup, RowGroupPattern
from fxprune.codegen.cuda.columns import build_columns_kernel
from fxprune.codegen.cuda.epilogue import activation_statements
from fxprune.codegen.cuda.kernel import make_kernel
from fxprune.codegen.cuda.tile import ColumnsSchedule, load_width, store_width
from fxprune.codegen.workload import Layout
from fxprune.errors import CodegenError
from fxprune.operators import ACTIVATIONS
from tests.codegen.cuda.suite import SMALL, SQUARE, TALL, WIDE, CudaCase, TwinSuite, cuda_case, make, run_twin
from tests.codegen.suite import (
    Tensors,
    conv,
    draw_pattern,
    draw_tensors,
    empty_pattern,
    full_pattern,
    halo,
    linear,
    single_cells,
)

_HARDTANH = (-0.5, 1.25)

_PATTERNS = {
    "one_row": cuda_case(s := conv(5, 1, (7, 5), 3, padding=1), SMALL, draw_pattern(s, (1,))),
    "one_column": cuda_case(s := conv(1, 9, (5, 7), 1), SMALL, draw_pattern(s, (9,), columns=1)),
    "one_cell": cuda_case(s := conv(1, 1, (1, 1), 1), SMALL, full_pattern(s)),
    **{
        f"columns_{count}_negative": cuda_case(
            s := conv(7, 13, (5, 6), 3, padding=1), WIDE, draw_pattern(s, (5, 3), columns=count), negative=True
        )
        for count in (4, 5, 6, 7, 12, 13, 14, 15)
    },
    "ragged_heights": cuda_case(
        s := conv(6, 61, (5, 4), 1, batch=3), SMALL, draw_pattern(s, (1, 2, 17, 33), scattered=True)
    ),
    "left_out_rows": cuda_case(s := conv(5, 23, (4, 4), 3), SMALL, draw_pattern(s, (6,), left_out=9)),
    "no_cells": cuda_case(s := conv(3, 19, (5, 5), 3, padding=1), TALL, empty_pattern(s), activation="relu"),
    "all_cells": cuda_case(s := conv(6, 70, (4, 5), 3, padding=1), SQUARE, full_pattern(s)),
    "every_tap_alone": cuda_case(s := conv(2, 18, (5, 6), 3, padding=1), SMALL, single_cells(s)),
}
_SHAPES = {
    "stride_2": cuda_case(s := conv(4, 20, (9, 7), 3, stride=2, padding=1, batch=2), SMALL, draw_pattern(s)),
    "stride_3x1": cuda_case(s := conv(4, 20, (10, 7), 3, stride=(3, 1)), SMALL, draw_pattern(s)),
    "padding_2_dilation_2": cuda_case(s := conv(4, 20, (9, 8), 3, padding=2, dilation=2), TALL, draw_pattern(s)),
    "uneven_padding": cuda_case(
        s := conv(4, 20, (6, 8), (2, 4), padding=halo((0, 1), (2, 1)), batch=2), SMALL, draw_pattern(s)
    ),
    "groups": cuda_case(s := conv(6, 21, (6, 5), 3, padding=1, groups=3), SMALL, draw_pattern(s, (4, 3))),
    "kernel_5": cuda_case(s := conv(3, 17, (9, 11), 5, padding=2, batch=3), SMALL, draw_pattern(s, density=0.1)),
    "kernel_7_stride_2": cuda_case(
        s := conv(3, 16, (13, 11), 7, stride=2, padding=3), WIDE, draw_pattern(s, density=0.1)
    ),
    "pointwise_stride_2": cuda_case(s := conv(9, 24, (8, 6), 1, stride=2, batch=2), SMALL, draw_pattern(s)),
    "one_axis": cuda_case(s := conv(5, 20, (23,), (3,), padding=1, batch=2), SMALL, draw_pattern(s)),
    "three_axes": cuda_case(s := conv(3, 20, (4, 5, 3), (3, 1, 3), padding=1, batch=2), SMALL, draw_pattern(s)),
    "primes": cuda_case(s := conv(13, 31, (11, 17), 3, padding=1, batch=1), TALL, draw_pattern(s, (7, 24))),
    "several_tiles": cuda_case(s := conv(4, 40, (13, 11), 3, padding=1, batch=3), SMALL, draw_pattern(s, (19,))),
    "linear_1_token": cuda_case(s := linear(1, 37, 41), SMALL, draw_pattern(s)),
    "linear_4_tokens": cuda_case(s := linear(4, 37, 41), SMALL, draw_pattern(s), activation="gelu"),
    "linear_67_tokens": cuda_case(s := linear(67, 19, 23), WIDE, draw_pattern(s)),
    **{
        f"batch_{batch}": cuda_case(s := conv(5, 20, (5, 7), 3, padding=1, batch=batch), SMALL, draw_pattern(s))
        for batch in (1, 2, 3, 4, 7, 8, 64, 65)
    },
}
_EPILOGUES = {
    **{
        f"activation_{name}": cuda_case(
            s := conv(4, 20, (6, 5), 3, padding=1, batch=2),
            SMALL,
            draw_pattern(s),
            activation=name,
            activation_args=_HARDTANH if name == "hardtanh" else (),
            residual=name in ("relu", "silu"),
        )
        for name in sorted(ACTIVATIONS)
    },
    "no_bias": cuda_case(s := conv(4, 20, (6, 5), 3, padding=1), SMALL, draw_pattern(s, left_out=5), bias=False),
    **{
        f"halos_{batch}": cuda_case(
            s := conv(4, 20, (6, 5), 3, padding=1, batch=batch),
            SMALL,
            draw_pattern(s, (6,), scattered=True),
            residual=True,
            activation="relu",
            x_halo=halo((2, 3), (1, 4)),
            y_halo=halo((1, 1), (2, 0)),
            residual_halo=halo((0, 2), (1, 1)),
        )
        for batch in (1, 2, 4)
    },
    "flat_residual": cuda_case(
        s := conv(6, 20, (6, 6), 1, batch=1), SMALL, draw_pattern(s), residual=True, activation="relu"
    ),
    "pointwise_of_a_halo": cuda_case(s := conv(6, 20, (6, 6), 1), SMALL, draw_pattern(s), x_halo=halo((1, 1), (1, 1))),
}
CASES = {**_PATTERNS, **_SHAPES, **_EPILOGUES}


@pytest.fixture(scope="module")
def suite() -> TwinSuite:
    return TwinSuite(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_twin_equals_torch(suite: TwinSuite, name: str) -> None:
    suite.check(name)


_ANY_ORDER = ("several_tiles", "batch_7", "halos_4", "linear_67_tokens")


def test_no_thread_waits_for_a_later_one() -> None:
    """What one thread reads of another's was written before both last waited for each other."""
    suite = TwinSuite({name: CASES[name] for name in _ANY_ORDER}, "twin_reversed")
    for name in _ANY_ORDER:
        suite.check(name)


_LAYER = conv(16, 70, (9, 9), 3, padding=1, batch=4)
SCHEDULES = {
    f"schedule_{rows}_{pixels}_{depth}_{stages}_{tm}x{tn}": cuda_case(
        _LAYER,
        ColumnsSchedule(rows, pixels, depth, stages, (tm, tn)),
        draw_pattern(_LAYER, (70,), 0.4),
        residual=True,
    )
    for rows, pixels, depth, stages, tm, tn in (
        (32, 256, 8, 2, 8, 8),
        (32, 128, 16, 3, 8, 8),
        (64, 128, 16, 3, 8, 8),
        (128, 128, 8, 3, 8, 8),
        (64, 64, 16, 4, 4, 8),
        (16, 128, 16, 2, 8, 4),
        (4, 128, 8, 2, 4, 4),
    )
}


@pytest.mark.slow
def test_every_kind_of_tile_equals_torch() -> None:
    suite = TwinSuite(SCHEDULES)
    for name in SCHEDULES:
        suite.check(name)


def test_nan_stays_nan_and_stays_in_its_pixels() -> None:
    case = cuda_case(s := conv(4, 20, (6, 5), 1), SMALL, full_pattern(s), activation="relu")
    suite = TwinSuite({"nan": case})
    drawn = suite.tensors["nan"]
    x = drawn.x.clone()
    x[0, 1, 0, 2, 3] = torch.nan
    found = run_twin(suite.library, "nan", suite.kernels["nan"], replace(drawn, x=x))
    wanted = torch.zeros(s.batch, 20, *s.spatial_out, dtype=torch.bool)
    wanted[:, :, 0, 2, 3] = True
    assert torch.equal(found.isnan(), wanted)


def test_blocks_start_longest_first() -> None:
    shape = conv(16, 48, (4, 4), 1)
    lengths = (3, 16, 9)
    rows = [np.arange(16 * index, 16 * index + 16, dtype=np.int32) for index in range(3)]
    groups = tuple(RowGroup(r, np.arange(length, dtype=np.int32)) for r, length in zip(rows, lengths, strict=True))
    case = cuda_case(shape, SMALL, RowGroupPattern((48, 16), groups))
    kernel = make(case, draw_tensors(case.layer, "lengths"))
    assert kernel.table.steps.tolist() == [2, 2, 1]
    assert kernel.table.order.tolist() == [1, 2, 0]


def test_the_table_holds_the_weight_and_nothing_else() -> None:
    case = cuda_case(s := conv(5, 50, (4, 4), 3), SMALL, draw_pattern(s, (20, 3), scattered=True, left_out=4))
    tensors = draw_tensors(case.layer, "table")
    kernel = make(case, tensors)
    table, height, depth = kernel.table, SMALL.height, SMALL.depth
    dense = np.zeros((50, s.columns), dtype=np.float32)
    for block in range(table.blocks):
        cells = int(table.steps[block]) * depth
        values = table.values[table.base[block] :][: cells * height].reshape(cells, height)
        columns = kernel.packed.columns[table.columns[table.begin[block] :][:cells]]
        for lane, row in enumerate(table.rows.reshape(-1, height)[block]):
            if row >= 0:
                np.add.at(dense[row], columns, values[:, lane])
            else:
                assert not values[:, lane].any()
    assert np.array_equal(dense, np.where(case.pattern.covered(), tensors.weight, 0))


@pytest.mark.parametrize(
    ("batch", "x_halo", "y_halo", "widths"),
    [
        (1, 0, 0, (4, 4)),
        (1, 1, 0, (1, 4)),
        (2, 1, 1, (2, 2)),
        (3, 1, 1, (1, 1)),
        (4, 1, 1, (4, 4)),
        (6, 0, 1, (4, 2)),
        (64, 1, 1, (4, 4)),
    ],
)
def test_neighbours_move_together_where_every_column_is_aligned(
    batch: int, x_halo: int, y_halo: int, widths: tuple[int, int]
) -> None:
    shape = conv(4, 20, (6, 6), 1, batch=batch)
    around = halo((x_halo, x_halo), (x_halo, x_halo)), halo((y_halo, y_halo), (y_halo, y_halo))
    work = cuda_case(shape, SMALL, full_pattern(shape), x_halo=around[0], y_halo=around[1]).workload()
    assert (load_width(work), store_width(work)) == widths


_BAD_SCHEDULES = {
    "powers of two": ColumnsSchedule(24, 64, 8, 2),
    "at least 4 x 4": ColumnsSchedule(16, 64, 8, 2, (2, 8)),
    "whole warps": ColumnsSchedule(8, 32, 8, 2),
    "threads along the pixels": ColumnsSchedule(128, 16, 32, 2, (8, 4)),
    "2 stages are needed": ColumnsSchedule(32, 64, 8, 1),
    "bytes of shared memory": ColumnsSchedule(128, 256, 16, 3),
    "none to copy": ColumnsSchedule(128, 32, 4, 2, (4, 4)),
}


@pytest.mark.parametrize("message", _BAD_SCHEDULES)
def test_a_schedule_that_cannot_work_is_refused(message: str) -> None:
    shape = conv(4, 20, (6, 6), 1, batch=4)
    case = cuda_case(shape, _BAD_SCHEDULES[message], full_pattern(shape))
    with pytest.raises(CodegenError, match=message):
        build_columns_kernel("bad", case.workload(), _BAD_SCHEDULES[message])


def test_a_grid_that_no_gpu_takes_is_refused() -> None:
    shape = conv(1, 16, (2048, 2050), 1)
    schedule = replace(SMALL, order="blocks")
    case = cuda_case(shape, schedule, full_pattern(shape))
    with pytest.raises(CodegenError, match=r"65600 thread blocks with schedule .* a GPU takes 65535"):
        make(case, draw_few(case))


def draw_few(case: CudaCase) -> Tensors:
    """Draw the weight of a case whose activations are too large to draw."""
    weight = np.ones((case.shape.channels_out, case.shape.columns), np.float32)
    return Tensors(torch.empty(0), None, weight, None)


@pytest.mark.parametrize("what", ["input", "output"])
def test_buffers_over_32_bits_are_refused(what: str) -> None:
    case = cuda_case(s := conv(2, 8, (4, 4), 1), SMALL, full_pattern(s))
    huge = Layout("chwn", 1, 2**16, (1, 2**8, 2**8))
    work = case.workload()
    work = replace(work, x=huge) if what == "input" else replace(work, y=huge)
    with pytest.raises(CodegenError, match=rf"The {what} of ConvShape.* cells; kernels index with 32 bits"):
        make_kernel(work, SMALL, draw_few(case).weight, case.pattern, None)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(CodegenError, match="Activation 'softmax' has no kernel statements"):
        activation_statements("x", "softmax", ())
