"""Building: one pool of threads, errors that say what is missing, and every name of TVM that is used."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path

import pytest
import torch

from fxprune.codegen.build import Library, _build_objects, _share
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.kernel import BoundKernel
from fxprune.codegen.target import parse_target
from fxprune.errors import CodegenError
from tests.codegen.suite import (
    TOLERANCE,
    Case,
    Suite,
    conv,
    draw_pattern,
    largest_error,
    place,
    poisoned,
    run_kernel,
    view,
)

LAYER = conv(4, 24, (9, 9), 3, padding=1)
CASE = Case(LAYER, RowsSchedule(8, 1, (1, 3), "pixels"), draw_pattern(LAYER, (8,)))


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite({"two_threads": CASE})


def _threads_of_process() -> set[str]:
    return {path.name for path in Path("/proc/self/task").iterdir()}


def test_parallel_loops_run_on_torchs_threads(suite: Suite) -> None:
    assert suite.library.shares_threads
    torch.randn(512, 512) @ torch.randn(512, 512)
    torch.randn(1 << 22).exp_()
    before = _threads_of_process()
    run_kernel(suite.library, "two_threads", suite.kernels["two_threads"], suite.tensors["two_threads"])
    assert not _threads_of_process() - before, "the kernel started threads of its own"


def test_kernels_run_without_openmp_on_threads_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.codegen.build._find_openmp", lambda: None)
    suite = Suite({"without_openmp": CASE})
    assert not suite.library.shares_threads
    suite.check("without_openmp")


def test_a_library_whose_folder_is_named_like_openmp_is_no_runtime(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "libgomp.so.1").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "libgomp.so.1"))
    scripts = {"one": suite.kernels["two_threads"].script("one")}
    first, second = (Library(scripts, parse_target("cpu", 2)) for _ in range(2))
    assert first.shares_threads
    assert second.shares_threads


def test_a_library_leaves_no_file_behind(suite: Suite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    library = Library({"again": suite.kernels["two_threads"].script("again")}, parse_target("cpu", 2))
    assert library.size_bytes > 1000
    assert not list(tmp_path.iterdir())


def test_a_missing_compiler_is_said(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts, target = {"one": suite.kernels["two_threads"].script("one")}, parse_target("cpu", 2)
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(CodegenError, match=r"No C\+\+ compiler was found \(no-such-compiler, as CXX says\).*Install g"):
        Library(scripts, target)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CodegenError, match=r"No C\+\+ compiler was found, and kernels.*Install g\+\+ or clang\+\+"):
        Library(scripts, target)


def test_the_compiler_that_cxx_names_links(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "c++ -DNDEBUG")
    assert Library({"one": suite.kernels["two_threads"].script("one")}, parse_target("cpu", 2))["one"] is not None


def test_functions_of_several_processes_make_one_library(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.codegen.build._SHARE", 1)
    monkeypatch.setattr("fxprune.codegen.build._MOST_PROCESSES", 2)
    kernel, tensors = suite.kernels["two_threads"], suite.tensors["two_threads"]
    library = Library({name: kernel.script(name) for name in ("one", "two", "three")}, parse_target("cpu", 2))
    for name in ("one", "two", "three"):
        found = view(run_kernel(library, name, kernel, tensors), kernel.work.y)
        assert largest_error(found, tensors.reference(CASE)) <= TOLERANCE


def test_the_shares_of_the_processes_are_alike_and_complete() -> None:
    scripts = {str(size): "x" * size for size in (9, 1, 5, 4, 3, 2)}
    shares = _share(scripts, 2)
    assert {name: text for share in shares for name, text in share.items()} == scripts
    assert [sum(map(len, share.values())) for share in shares] == [12, 12]


@pytest.mark.parametrize(("waiting", "parts"), [(0, 1), (1, 1), (2, 2)])
def test_processes_that_wait_anyway_take_a_share(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, waiting: int, parts: int
) -> None:
    monkeypatch.setattr("fxprune.codegen.build._MOST_PROCESSES", 2)
    monkeypatch.setattr("fxprune.codegen.build.os.cpu_count", lambda: 2)
    monkeypatch.setattr("fxprune.codegen.build.count_idle", lambda: waiting)
    scripts = {name: suite.kernels["two_threads"].script(name) for name in ("one", "two", "three")}
    assert len(_build_objects(scripts, parse_target("cpu", 2), tmp_path)) == parts


def test_an_error_of_the_linker_names_the_functions(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.codegen.build._LAUNCH_SOURCE", Path("no/such/launch.cc"))
    with pytest.raises(CodegenError, match=r"TVM could not build one for (?s:.)*no/such/launch.cc"):
        Library({"one": suite.kernels["two_threads"].script("one")}, parse_target("cpu", 2))


@pytest.mark.parametrize(
    ("old", "new"), [("T.parallel", "T.sideways"), ("acc0[", "missing["), ('"float32"', '"float33"')]
)
def test_an_error_of_tvm_names_the_functions(suite: Suite, old: str, new: str) -> None:
    script = suite.kernels["two_threads"].script("broken").replace(old, new)
    with pytest.raises(CodegenError, match="TVM could not build broken for") as caught:
        Library({"broken": script}, parse_target("cpu", 2))
    assert "the build process" not in str(caught.value), "the process has ended"


def test_wrong_buffers_are_refused_by_the_kernel(suite: Suite) -> None:
    kernel, tensors = suite.kernels["two_threads"], suite.tensors["two_threads"]
    x = place(tensors.x, kernel.work.x, LAYER.padding)
    short = BoundKernel(suite.library["two_threads"], kernel, x, poisoned(kernel.work.y.numel - 1), None, None)
    with pytest.raises((ValueError, TypeError, RuntimeError), match="Y"):
        short.run()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("tvm", "IRModule"),
        ("tvm", "compile"),
        ("tvm", "get_global_func"),
        ("tvm_ffi", "Function"),
        ("tvm_ffi", "from_dlpack"),
        ("tvm_ffi", "load_module"),
        ("tvm_ffi.libinfo", "find_include_path"),
        ("tvm.script.ir_builder.base", "IRBuilder"),
        ("tvm.script.ir_builder.base", "IRBuilderFrame"),
        ("tvm.script.parser.core.evaluator", "_eval_op"),
        ("tvm.target", "Target"),
        *(
            ("tvm.script.parser.tirx", name)
            for name in (
                *("Cast", "Select", "address_of", "alloc_buffer", "call_llvm_intrin", "evaluate", "float32", "floor"),
                *("func_attr", "handle", "int32", "match_buffer", "max", "min", "parallel", "prim_func"),
                *("reinterpret", "serial", "unroll", "vectorized", "let"),
            )
        ),
        *(
            ("tvm.tirx.script.builder", name)
            for name in ("Bind", "Else", "If", "Then", "arg", "buffer_store", "evaluate", "func_name", "prim_func")
        ),
    ],
)
def test_tvm_has_every_name_in_use(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", ["target.target_has_feature", "target.llvm_get_system_cpu"])
def test_tvm_has_every_global_function_in_use(name: str) -> None:
    tvm = importlib.import_module("tvm")
    assert tvm.get_global_func(name, allow_missing=True) is not None
