"""The reader of scripts against TVM's own parser: the same functions, and refusals of anything else."""

from __future__ import annotations

import textwrap

import pytest
import tvm
import tvm.script

from fxprune.codegen.cpu.layer_norm import NormWorkload, build_norm_kernel
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.cpu.pool import PoolWorkload, build_pool_kernel
from fxprune.codegen.cpu.pool_planes import build_plane_pool_kernel
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.cpu.stage import build_stage_kernel
from fxprune.codegen.cpu.transpose import build_transpose_kernel
from fxprune.codegen.reader import read_script
from fxprune.codegen.workload import Layout
from tests.codegen import test_depthwise, test_row_pool, test_winograd
from tests.codegen.cuda import suite as cuda
from tests.codegen.cuda import test_columns, test_tensor_columns
from tests.codegen.suite import Case, conv, draw_pattern, draw_tensors, halo, make

NHWC = Layout("nhwc", 2, 24, (1, 7, 9), halo((1, 1), (0, 2)))
HALVES = Layout("nhwc", 2, 24, (1, 3, 4), halo((1, 1), (1, 1)))
PLANES = Layout("nchw", 2, 24, (1, 7, 9), spread=True)
TOKENS = Layout("nhwc", 1, 24, (1, 1, 7))

LAYER = conv(6, 40, (7, 9), 3, padding=1)
SCATTERED = draw_pattern(LAYER, (16, 5), scattered=True)
LAYERS = {
    "rows": Case(LAYER, RowsSchedule(8, 2, (2, 3), "pixels", 2), SCATTERED, activation="gelu", residual=True),
    "rows_prefetch": Case(LAYER, RowsSchedule(16, 1, (1, 5), "blocks", prefetch=True), SCATTERED),
    "rows_even": Case(LAYER, RowsSchedule(16, 1, (1, 16), "pixels", even=True), SCATTERED, activation="hardswish"),
    "rows_pooled": test_row_pool.cases()["odd_mean"],
    "pixels": Case(LAYER, PixelsSchedule(16, 3, 2, "pixels"), SCATTERED, residual=True),
    "pixels_by_block": Case(LAYER, PixelsSchedule(8, 4, 1, "blocks", by_block=True), SCATTERED, activation="silu"),
    "depthwise": test_depthwise.CASES["residual"],
    "winograd": test_winograd.CASES["stem_narrow"],
}
OTHERS = {
    "pool": build_pool_kernel("kernel", PoolWorkload("max", 24, NHWC, HALVES, (2, 2), (2, 2), (0, 0), 16, 2)),
    "pool_planes": build_plane_pool_kernel(
        "kernel", PoolWorkload("mean", 24, PLANES, PLANES, (3, 3), (1, 1), (0, 0), 16, 2)
    ),
    "norm": build_norm_kernel("kernel", NormWorkload(24, TOKENS, TOKENS, 1e-5, 16, 2)),
    "stage": build_stage_kernel("kernel", NHWC, 2),
    "turn": build_transpose_kernel("kernel", PLANES, NHWC, 24, 16, 2),
}
FORMS = ("device", "twin", "twin_reversed")


def _layer(name: str) -> str:
    return make(LAYERS[name], draw_tensors(LAYERS[name], name)).script("kernel")


def _equals_tvm(text: str) -> bool:
    """Whether both read the same function, names of variables included."""
    wanted, found = tvm.script.from_source(text), read_script(text)
    tvm.ir.assert_structural_equal(found, wanted)
    return str(found) == str(wanted)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_read_as_tvm_reads_them(name: str) -> None:
    assert _equals_tvm(_layer(name))


@pytest.mark.parametrize("name", OTHERS)
def test_other_kernels_are_read_as_tvm_reads_them(name: str) -> None:
    assert _equals_tvm(OTHERS[name])


@pytest.mark.parametrize("form", FORMS)
def test_kernels_of_a_gpu_are_read_as_tvm_reads_them(form: str) -> None:
    case = test_columns.CASES["halos_2"]
    assert _equals_tvm(cuda.make(case, draw_tensors(case.layer, form)).script("kernel", form))  # type: ignore[arg-type]


def test_kernels_of_tensor_cores_are_read_as_tvm_reads_them() -> None:
    case = test_tensor_columns.CASES["halos_2"]
    assert _equals_tvm(cuda.make(case, draw_tensors(case.layer, "tensor")).script("kernel"))


_HEAD = """@T.prim_func(s_tir=True)
def kernel(Y_handle: T.handle):
    T.func_attr({"global_symbol": "kernel", "tirx.noalias": True})
    Y = T.match_buffer(Y_handle, (8,), "float32", align=4)
"""


_BODIES = {
    "branches": """
        if 1 < Y[0] and not (Y[1] >= 2.0 or Y[2] != 3.0):
            Y[0] = 1.0
        elif Y[3] == 0:
            Y[1] = -Y[2]
        else:
            Y[2] = 2""",
    "names used twice": """
        for i in T.serial(2, 5):
            j: T.let = i * 2 - 1
            for i in T.unroll(j):
                Y[i] = Y[j] / 2.0""",
    "bindings": """
        a = T.bind(3)
        b = T.alloc_buffer((4,), "int32", scope="global")
        b[a] = a
        Y[b[a]] = T.float32(0.5)""",
    "vectors": """
        for v in T.vectorized(8):
            Y[v] = T.Select(Y[v] > 0.0, Y[v], T.float32(0.0))
        T.evaluate(0)""",
    "loops in loops": """
        x: T.let = 3
        for i in T.parallel(x):
            for j in T.serial(i):
                for k in T.serial(j):
                    Y[k] = T.max(Y[j], Y[i])""",
}


@pytest.mark.parametrize("body", _BODIES)
def test_statements_are_read_as_tvm_reads_them(body: str) -> None:
    assert _equals_tvm(_HEAD + textwrap.indent(textwrap.dedent(_BODIES[body]), "    ") + "\n")


@pytest.mark.parametrize(
    "line",
    [
        "while Y[0] > 0:\n        Y[0] = 0",
        "Y[0] += 1",
        "with T.attr(0, 'a', 1):\n        Y[0] = 1",
        "x: T.int32 = 3",
        "return 3",
    ],
)
def test_other_statements_are_refused(line: str) -> None:
    with pytest.raises(SyntaxError, match="no such statement"):
        read_script(f"{_HEAD}    {line}\n")


@pytest.mark.parametrize("line", ["Y[0] = missing", "x = 3", "Y[0] = 'text'", "Y[0, 1] = 1.0"])
def test_nonsense_is_refused(line: str) -> None:
    with pytest.raises(Exception, match=r".") as caught:  # TVM has types of its own
        read_script(f"{_HEAD}    {line}\n")
    assert not isinstance(caught.value, AssertionError)


def test_what_is_used_out_of_its_scope_is_refused() -> None:
    with pytest.raises(NameError, match="'j' is not defined"):
        read_script(f"{_HEAD}    for i in T.serial(2):\n        j: T.let = i\n    Y[j] = 1.0\n")
