"""Kernels on tensor cores against torch in float64: the CUDA text on a CPU, fragments as the PTX ISA has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fxprune.codegen.cuda.fragments import order_fragments, round_tf32
from fxprune.codegen.cuda.tensor_columns import build_tensor_kernel
from fxprune.codegen.cuda.tensor_schedules import TENSOR_TILES, TF32_TILES
from fxprune.codegen.cuda.tensor_tile import TensorSchedule
from fxprune.codegen.cuda.tile import load_width
from fxprune.codegen.workload import CellType
from fxprune.errors import CodegenError
from tests.codegen.cuda import test_columns
from tests.codegen.cuda.emulated import Emulated
from tests.codegen.cuda.suite import CudaCase, cuda_case, make
from tests.codegen.suite import conv, draw_pattern, draw_tensors, full_pattern

LOW = TensorSchedule(16, 32, 16, 2, (16, 32))
MIXED = TensorSchedule(32, 64, 32, 3, (16, 32))
TALL = TensorSchedule(64, 64, 16, 4, (32, 32), "blocks")


def _tf32(schedule: TensorSchedule) -> TensorSchedule:
    """Return the schedule for float32 with as many bytes a step."""
    return replace(schedule, depth=schedule.depth // 2, cell_bytes=4)


_TURNS: tuple[tuple[TensorSchedule, CellType], ...] = (
    (LOW, "bfloat16"), (_tf32(MIXED), "float32"), (MIXED, "float16"), (_tf32(LOW), "float32"), (TALL, "bfloat16"),
    (_tf32(TALL), "float32"), (MIXED, "bfloat16")
)  # fmt: skip

CASES = {
    name: CudaCase(case.layer, *_TURNS[number % len(_TURNS)])
    for number, (name, case) in enumerate(test_columns.CASES.items())
}
"""Every layer of the float32 kernels, tiles and types in turn."""

_LAYER = conv(16, 70, (9, 9), 3, padding=1, batch=8)
SCHEDULES = {
    "_".join(["schedule", *str(tile).split()]): cuda_case(
        _LAYER, tile, draw_pattern(_LAYER, (70,), 0.4), "float32" if tile.cell_bytes == 4 else "bfloat16", residual=True
    )
    for tile in (
        *TENSOR_TILES,
        *TF32_TILES,
        TensorSchedule(16, 128, 32, 2, (16, 16), cell_bytes=4),
        TensorSchedule(16, 128, 64, 2, (16, 16)),
        TensorSchedule(16, 32, 16, 3, (16, 16)),
        TensorSchedule(128, 64, 32, 3, (16, 64), "blocks"),
    )
}

_QUICK = (
    *("one_row", "one_column", "one_cell", "columns_7_negative", "columns_13_negative", "columns_14_negative"),
    *("ragged_heights", "left_out_rows", "no_cells", "all_cells", "stride_2", "padding_2_dilation_2", "groups"),
    *("uneven_padding", "three_axes", "primes", "several_tiles", "linear_1_token", "linear_67_tokens", "batch_1"),
    *("batch_2", "batch_3", "batch_4", "batch_64", "activation_gelu", "halos_1", "halos_4", "flat_residual"),
)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    return Emulated({name: CASES[name] for name in _QUICK}, tmp_path_factory.mktemp("emulated"))


@pytest.mark.parametrize("name", _QUICK)
def test_the_cuda_text_equals_torch(emulated: Emulated, name: str) -> None:
    emulated.check(name)


@pytest.mark.slow
def test_every_cuda_text_and_every_kind_of_tile_equals_torch(tmp_path: Path) -> None:
    everything = Emulated({**CASES, **SCHEDULES}, tmp_path)
    for name in everything.cases:
        everything.check(name)


_SHAPE = conv(16, 32, (3, 3), 3, padding=1, batch=8)
_SMALL = {"small": cuda_case(_SHAPE, MIXED, full_pattern(_SHAPE), "float16")}
_SMALL_TF32 = {"small": cuda_case(_SHAPE, _tf32(MIXED), full_pattern(_SHAPE))}
_MISTAKES = {
    "a step is multiplied before it is there": (_SMALL, "    fxprune_wait1();\n", ""),
    "a step is overwritten while it is multiplied": (_SMALL, "    __syncthreads();\n", ""),
    "the halves of a product's b change places": (_SMALL, "(&(b_ptr[(j_1 * 4)]))", "(&(b_ptr[(j_1 * 4) ^ 4]))"),
    "the rows of a product are one off": (_SMALL, "& 31) >> 2))]", "& 31) >> 3))]"),
    "a product is added to another one's sum": (_SMALL, "(&(acc_ptr[(j_2 * 4)]))", "(&(acc_ptr[(j_2 * 4) ^ 4]))"),
    "tf32: activations are not rounded": (_SMALL_TF32, "fxprune_load_rounded(", "fxprune_load_cut("),
    "tf32: the halves of b change places": (_SMALL_TF32, "(&(b_ptr[(j_1 * 2)]))", "(&(b_ptr[(j_1 * 2) ^ 2]))"),
}


@pytest.mark.parametrize("mistake", _MISTAKES)
def test_a_mistake_in_the_text_is_seen(tmp_path: Path, mistake: str) -> None:
    cases, right, wrong = _MISTAKES[mistake]
    broken = Emulated(cases, tmp_path, (right, wrong))
    with pytest.raises(AssertionError, match="of what rounding may cost"):
        broken.check("small")


def test_tf32_is_rounded_to_the_nearest() -> None:
    one, step = np.float32(1), np.float32(2.0**-10)
    values = np.asarray([1, 1 + step / 4, 1 + step / 2, -1 - step / 2, 1 + step * 3 / 4, 0, np.inf, -3e38], np.float32)
    wanted = np.asarray([1, 1, 1 + step, -1 - step, 1 + step, 0, np.inf, round(3e38 / 2.0**117) * -(2.0**117)])
    assert round_tf32(values).tolist() == wanted.astype(np.float32).tolist()
    assert np.isnan(round_tf32(np.asarray([np.nan], np.float32))).all()
    assert round_tf32(one.reshape(1)).dtype == np.float32


def test_weights_out_of_fragment_order_are_seen(tmp_path: Path) -> None:
    broken = Emulated(_SMALL, tmp_path)
    broken.check("small")
    words = broken.kernels["small"].arrays["W"]
    words[:] = words.reshape(-1, 4)[:, [0, 2, 1, 3]].reshape(-1)
    with pytest.raises(AssertionError, match="of what rounding may cost"):
        broken.check("small")


def test_a_thread_finds_its_weights_where_the_isa_says() -> None:
    """One block of 32 columns and 32 rows; a cell's value is 100 columns + row, exact in float16 up to 2048."""
    columns, rows = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    values = (32 * columns + rows).astype(np.float32)
    words = order_fragments(values.reshape(-1), 32, "float16").view(np.float16).reshape(2, 2, 32, 4, 2)
    for thread in range(32):
        g, q = thread // 4, thread % 4
        for register, (row, column) in enumerate(((g, 2 * q), (g + 8, 2 * q), (g, 2 * q + 8), (g + 8, 2 * q + 8))):
            wanted = [[32 * (16 * k + column + e) + 16 * m + row for e in range(2)] for k in range(2) for m in range(2)]
            assert words[:, :, thread, register].reshape(4, 2).tolist() == wanted


@pytest.mark.parametrize(("batch", "width"), [(1, 1), (2, 2), (4, 4), (6, 2), (8, 8), (64, 8)])
def test_copies_are_as_wide_as_the_batch_allows(batch: int, width: int) -> None:
    shape = conv(4, 20, (6, 5), 3, padding=1, batch=batch)
    work = cuda_case(shape, LOW, full_pattern(shape), "bfloat16").workload()
    assert load_width(work) == width


_BAD_SCHEDULES: dict[str, tuple[TensorSchedule, CellType]] = {
    "cells of float32; they have 4 bytes, this one takes 2": (LOW, "float32"),
    "cells of float16; they have 2 bytes, this one takes 4": (_tf32(LOW), "float16"),
    "the step at least 8": (replace(_tf32(LOW), depth=4), "float32"),
    "powers of two": (replace(LOW, rows=48), "bfloat16"),
    "the step at least 16": (replace(LOW, depth=8), "bfloat16"),
    "at most its tile": (replace(LOW, warp=(32, 32)), "bfloat16"),
    "2 stages are needed": (replace(LOW, stages=1), "bfloat16"),
    "bytes of shared memory": (TensorSchedule(128, 256, 32, 3, (64, 64)), "bfloat16"),
    "none to copy": (TensorSchedule(128, 32, 16, 2, (16, 16)), "bfloat16"),
    "columns for each thread to copy": (replace(LOW, depth=128), "float16"),
}


@pytest.mark.parametrize("message", _BAD_SCHEDULES)
def test_a_schedule_that_cannot_work_is_refused(message: str) -> None:
    schedule, cells = _BAD_SCHEDULES[message]
    shape = conv(4, 20, (6, 6), 1, padding=1, batch=8 if message == "none to copy" else 1)
    work = cuda_case(shape, schedule, full_pattern(shape), cells).workload()
    with pytest.raises(CodegenError, match=message):
        build_tensor_kernel("bad", work, schedule)


def test_tensor_cores_have_no_twin() -> None:
    case = CASES["one_cell"]
    with pytest.raises(CodegenError, match="has no twin: a twin's threads know nothing of warps"):
        make(case, draw_tensors(case.layer, "one_cell")).script("one", "twin")


def test_nan_stays_nan_and_stays_in_its_pixels(tmp_path: Path) -> None:
    shape = conv(4, 20, (6, 5), 1, batch=2)
    case = cuda_case(shape, LOW, full_pattern(shape), "bfloat16", activation="relu")
    emulated = Emulated({"nan": case}, tmp_path)
    x = emulated.tensors["nan"].x
    x[0, 1, 0, 2, 3] = torch.nan
    wanted = torch.zeros(2, 20, 1, 6, 5, dtype=torch.bool)
    wanted[0, :, 0, 2, 3] = True
    assert torch.equal(emulated.run("nan").isnan(), wanted)
