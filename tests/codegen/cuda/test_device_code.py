"""CUDA that TVM writes and nvcc compiles: every architecture, every default tile, and what the kernels take."""

from __future__ import annotations

import re
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fxprune.codegen.cuda.build import CudaLibrary, build_library, write_sources
from fxprune.codegen.cuda.nvcc import DeviceCode, compile_cuda, find_nvcc, read_resources
from fxprune.codegen.cuda.schedules import TILES
from fxprune.codegen.cuda.target import ARCHITECTURES
from fxprune.codegen.cuda.tensor_schedules import TENSOR_TILES, TF32_TILES
from fxprune.codegen.cuda.tensor_tile import TensorSchedule, find_tensor_fault
from fxprune.codegen.cuda.tile import ColumnsSchedule
from fxprune.codegen.workload import CellType
from fxprune.errors import ArtifactError, CodegenError
from tests.codegen.cuda.suite import SMALL, cuda_case, make
from tests.codegen.suite import conv, draw_pattern, draw_tensors, full_pattern, halo

needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="needs nvcc, of the CUDA toolkit; no GPU")

_MOST_REGISTERS = 128
"""Registers of a thread with which four thread blocks of 128 threads fit a multiprocessor."""

_REGISTERS, _LARGEST_THREAD = 65536, 255
"""Registers of a multiprocessor, and the most that a thread can have."""

_LEAST_SHARED_BYTES, _RESERVED_BYTES = 102400, 1024
"""Shared memory of a multiprocessor of sm_86 and sm_89, and what every thread block takes of it besides its own."""

_AROUND = halo((1, 1), (1, 1))

_ELF = b"\x7fELF"


def _script(name: str, schedule: ColumnsSchedule, batch: int, activation: str = "relu") -> str:
    shape = conv(16, 64, (14, 14), 3, padding=1, batch=batch)
    around = halo((1, 1), (1, 1))
    case = cuda_case(shape, schedule, draw_pattern(shape, (32,)), residual=True, activation=activation, y_halo=around)
    return make(case, draw_tensors(case.layer, name)).script(name)


@pytest.fixture(scope="module")
def library() -> CudaLibrary:
    scripts = {
        f"{number}_batch_{batch}": _script(f"t{number}_batch_{batch}", schedule, batch)
        for number, schedule in enumerate(TILES)
        for batch in (1, 4)
    }
    return build_library({f"t{name}": text for name, text in scripts.items()}, "sm_90a")


@needs_nvcc
@pytest.mark.parametrize("number", range(len(TILES)))
def test_default_tiles_spill_no_register(library: CudaLibrary, number: int) -> None:
    for batch in (1, 4):
        found = library.functions[f"t{number}_batch_{batch}"].resources
        assert (found.spill_bytes, found.stack_bytes) == (0, 0)
        assert 0 < found.registers <= _MOST_REGISTERS
        assert found.shared_bytes == TILES[number].shared_bytes


@needs_nvcc
def test_a_library_is_machine_code_for_its_architecture(library: CudaLibrary) -> None:
    assert all(part.cubin.startswith(_ELF) and part.arch == "sm_90a" for part in library.parts)
    assert all(part.resources for part in library.parts)
    for name, function in library.functions.items():
        assert function.symbol.encode() in library.parts[function.part].cubin
        assert function.symbol == f"{name}_kernel"


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_compiles_every_epilogue(arch: str) -> None:
    names = ("silu", "hardswish", "gelu", "gelu_tanh", "sigmoid", "relu")
    library = build_library({name: _script(name, TILES[0], 2, name) for name in names}, arch)
    assert {function.resources.spill_bytes for function in library.functions.values()} == {0}
    assert {part.arch for part in library.parts} == {arch}


def _tensor_script(name: str, schedule: TensorSchedule, cells: CellType, batch: int) -> str:
    shape = conv(16, 64, (14, 14), 3, padding=1, batch=batch)
    around = halo((1, 1), (1, 1))
    case = cuda_case(
        shape, schedule, draw_pattern(shape, (32,)), cells, residual=True, activation="relu", y_halo=around
    )
    return make(case, draw_tensors(case.layer, name)).script(name)


_ALL_TENSOR_TILES = (*TENSOR_TILES, *TF32_TILES)


def _check_tensor_tiles(library: CudaLibrary) -> None:
    for name, function in library.functions.items():
        tile, found = _ALL_TENSOR_TILES[int(name.split("_")[1])], function.resources
        assert (found.spill_bytes, found.stack_bytes) == (0, 0), name
        assert 0 < found.registers <= _most_registers(tile), name
        assert found.shared_bytes == tile.shared_bytes


def _most_registers(tile: TensorSchedule) -> int:
    """Return how many registers let as many thread blocks work at once as the least shared memory does, sm_86's."""
    blocks = _LEAST_SHARED_BYTES // (tile.shared_bytes + _RESERVED_BYTES)
    return min(_LARGEST_THREAD, _REGISTERS // (blocks * tile.threads))


@needs_nvcc
def test_default_tiles_on_tensor_cores_spill_no_register() -> None:
    texts = {
        f"t_{n}": _tensor_script(f"t_{n}", tile, "bfloat16" if tile.cell_bytes == 2 else "float32", 8)
        for n, tile in enumerate(_ALL_TENSOR_TILES)
    }
    _check_tensor_tiles(build_library(texts, "sm_90a"))


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_compiles_every_tile_on_tensor_cores(arch: str) -> None:
    texts = {}
    for number, tile in enumerate(_ALL_TENSOR_TILES):
        cells: CellType = "float32" if tile.cell_bytes == 4 else ("bfloat16", "float16")[number % 2]
        for batch in (1, 2, 8):
            name = f"t_{number}_batch_{batch}"
            case = cuda_case(s := conv(1, 1, (1, 1), batch=batch), tile, full_pattern(s), cells, x_halo=_AROUND)
            if find_tensor_fault(case.workload(), tile) is None:
                texts[name] = _tensor_script(name, tile, cells, batch)
    _check_tensor_tiles(build_library(texts, arch))


def test_products_copies_and_fetches_are_what_a_gpu_has() -> None:
    text = _tensor_script("k", TENSOR_TILES[1], "float16", 8)
    source = write_sources([{"k": text}], "sm_80")[0].text
    assert "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32" in source
    assert "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16" in source
    assert "cp.async.cg.shared.global [%0], [%1], 16;" in source
    assert source.count("__syncthreads") == 1
    assert "bf16" not in source


def test_products_in_tf32_are_rounded_and_their_copies_asynchronous() -> None:
    for batch, size in ((1, 4), (8, 16)):
        source = write_sources([{"k": _tensor_script("k", TF32_TILES[1], "float32", batch)}], "sm_80")[0].text
        assert "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32" in source
        assert "cvt.rna.tf32.f32" in source
        assert f"shared.global [%0], [%1], {size};" in source
        assert "fxprune_move2" not in source


def test_arguments_are_named_in_the_order_of_the_kernel() -> None:
    (source,) = write_sources([{"one": _script("one", SMALL, 2)}], "sm_80")
    signature = re.search(r"one_kernel\((.*?)\)", source.text)
    assert signature is not None
    found = [argument.split()[-1] for argument in signature[1].split(",")]
    assert found == [f"{name}_ptr" for name in source.parameters["one"]]
    assert set(source.parameters["one"]) == {
        "X", "W", "OFF", "BEGIN", "STEPS", "BASE", "ROWS", "BIAS", "Y", "RES"
    }  # fmt: skip


def test_copies_are_asynchronous_and_as_wide_as_the_batch_allows() -> None:
    texts = [_script("k", SMALL, batch) for batch in (1, 2, 4)]
    sources = [write_sources([{"k": text}], "sm_80")[0].text for text in texts]
    for source, size in zip(sources, (4, 8, 16), strict=True):
        assert f"shared.global [%0], [%1], {size};" in source
    assert sources[2].count("__syncthreads") == 1
    assert sources[2].count("fxprune_wait0();") == 1


def test_masks_do_not_change_the_text() -> None:
    """Layers of one shape share a kernel whatever their masks are."""
    shape = conv(16, 64, (14, 14), 3, padding=1)
    cases = [
        cuda_case(shape, SMALL, draw_pattern(shape, (height,), density)) for height, density in ((32, 0.2), (5, 0.6))
    ]
    first, second = (make(case, draw_tensors(case.layer, "k")).script("k") for case in cases)
    assert first == second
    assert (
        make(cases[0], draw_tensors(cases[0].layer, "k")).grid != make(cases[1], draw_tensors(cases[1].layer, "k")).grid
    )


def test_what_tvm_refuses_is_named() -> None:
    with pytest.raises(CodegenError, match="TVM could not write CUDA of broken for sm_80"):
        build_library({"broken": "this is no script"}, "sm_80")


@needs_nvcc
def test_what_nvcc_refuses_is_shown() -> None:
    with pytest.raises(CodegenError, match="ended with code"):
        compile_cuda("not C++", "sm_80")
    with pytest.raises(CodegenError, match="Is sm_12 one that this CUDA toolkit compiles for"):
        compile_cuda("", "sm_12")


def test_without_nvcc_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.codegen.cuda.nvcc.find_nvcc", lambda: None)
    with pytest.raises(CodegenError, match=r"No nvcc was found .* Install the CUDA toolkit"):
        compile_cuda("", "sm_80")


def test_nvcc_is_looked_for_where_cuda_home_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.write_text(f"#!{sys.executable}\n")
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert find_nvcc() == str(nvcc)


_REPORT = """ptxas info    : Compiling entry function 'f_kernel' for 'sm_90a'
ptxas info    : Function properties for f_kernel
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 5120 bytes smem
"""


def test_spills_are_read_from_the_report() -> None:
    (found,) = read_resources(_REPORT).values()
    assert (found.registers, found.shared_bytes, found.spill_bytes, found.stack_bytes) == (40, 5120, 28, 8)


def test_a_report_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(CodegenError, match="neither registers nor spills"):
        read_resources(_REPORT.replace("spill", "lost"))


@needs_nvcc
@pytest.mark.slow
def test_a_tile_too_large_for_the_registers_is_seen_to_spill() -> None:
    schedule = replace(SMALL, rows=128, pixels=256, thread=(32, 32), depth=8)
    (function,) = build_library({"huge": _script("huge", schedule, 4)}, "sm_80").functions.values()
    assert function.resources.spill_bytes > 0


@needs_nvcc
def test_a_library_is_the_same_after_it_was_bytes(library: CudaLibrary) -> None:
    assert CudaLibrary.from_binary(library.binary) == library


@pytest.mark.parametrize("binary", [b"", b"\x02\0\0\0\0\0\0\0{}", b"not a library of any kind"])
def test_other_bytes_are_no_library(binary: bytes) -> None:
    with pytest.raises(ArtifactError, match="are no library of CUDA kernels"):
        CudaLibrary.from_binary(binary)


def test_a_library_that_lost_its_end_is_refused() -> None:
    whole = CudaLibrary("sm_80", (DeviceCode("sm_80", (13, 0), b"code", {}),), {}).binary
    with pytest.raises(ArtifactError, match="bytes were expected"):
        CudaLibrary.from_binary(whole[:-1])
