"""The driver by ctypes, against a library that stands for it: what it is asked, and every way it can fail."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch

from fxprune.codegen.build import _find_compiler
from fxprune.codegen.cuda.device import _can_run, find_gpu
from fxprune.codegen.cuda.driver import Driver, Grid
from fxprune.codegen.cuda.nvcc import DeviceCode
from fxprune.errors import UnsupportedError

CODE = DeviceCode("sm_90a", (13, 0), b"\x7fELF and more", {})
GRID = Grid((7, 5, 1), 128)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("driver") / "libstub.so"
    source = Path(__file__).with_name("stub_driver.c")
    subprocess.run([*_find_compiler(), "-x", "c", "-shared", "-fPIC", "-o", str(output), str(source)], check=True)
    return output


@pytest.fixture
def stub(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, value in (("version", 13000), ("load_result", 0), ("launch_result", 0), ("device_result", 0)):
        _set(library, name, value)
    return library


def _set(stub: ctypes.CDLL, name: str, value: int) -> None:
    ctypes.c_int.in_dll(stub, f"stub_{name}").value = value


def _pointer(stub: ctypes.CDLL, name: str) -> int | None:
    return ctypes.c_void_p.in_dll(stub, f"stub_{name}").value


def test_a_launch_passes_grid_stream_and_pointers(path: Path, stub: ctypes.CDLL) -> None:
    tensors = [torch.zeros(4), torch.zeros(3, dtype=torch.int32), torch.zeros(5)]
    driver = Driver(2, str(path))
    module = driver.load(CODE)
    assert (ctypes.c_char * 4).in_dll(stub, "stub_image").raw == CODE.cubin[:4]
    assert ctypes.c_int.in_dll(stub, "stub_current").value == 102, "the context of device 2"
    launch = driver.bind(module, "layer_0_kernel", GRID, tensors)
    assert (ctypes.c_char * 64).in_dll(stub, "stub_symbol").value == b"layer_0_kernel"
    before = ctypes.c_int.in_dll(stub, "stub_launches").value
    launch(0xABCDEF0123)
    assert ctypes.c_int.in_dll(stub, "stub_launches").value == before + 1
    assert list((ctypes.c_uint * 7).in_dll(stub, "stub_shape")) == [7, 5, 1, 128, 1, 1, 0]
    assert _pointer(stub, "stream") == 0xABCDEF0123
    assert _pointer(stub, "function") == 0x123456789ABD, "64 bits of the handle"
    found = list((ctypes.c_void_p * 3).in_dll(stub, "stub_arguments"))
    assert found == [tensor.data_ptr() for tensor in tensors]


def test_the_default_stream_is_zero(path: Path, stub: ctypes.CDLL) -> None:
    driver = Driver(0, str(path))
    driver.bind(driver.load(CODE), "k", GRID, [torch.zeros(1)] * 3)(0)
    assert _pointer(stub, "stream") is None


def test_a_driver_older_than_the_code_is_refused(path: Path, stub: ctypes.CDLL) -> None:
    _set(stub, "version", 12040)
    with pytest.raises(UnsupportedError, match=r"driver knows CUDA 12\.4, .* compiled with CUDA 13\.0\. Update"):
        Driver(0, str(path)).load(CODE)


def test_code_of_another_architecture_is_refused(path: Path, stub: ctypes.CDLL) -> None:
    _set(stub, "load_result", 209)
    with pytest.raises(UnsupportedError, match="refuses machine code for sm_90a: CUDA_ERROR_NO_BINARY_FOR_GPU"):
        Driver(0, str(path)).load(CODE)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("device_result", "cannot find device 9: CUDA_ERROR_OUT_OF_MEMORY"),
        ("load_result", "cannot load machine code for sm_90a"),
        ("launch_result", "cannot launch the kernel k: CUDA_ERROR_OUT_OF_MEMORY"),
    ],
)
def test_what_fails_is_named(path: Path, stub: ctypes.CDLL, name: str, message: str) -> None:
    _set(stub, name, 2)
    with pytest.raises(UnsupportedError, match=message):
        _launch_once(path)


def _launch_once(path: Path) -> None:
    driver = Driver(9, str(path))
    driver.bind(driver.load(CODE), "k", GRID, [torch.zeros(1)] * 3)(0)


def test_a_kernel_that_is_not_there_is_named(path: Path, stub: ctypes.CDLL) -> None:
    del stub
    driver = Driver(0, str(path))
    with pytest.raises(UnsupportedError, match="cannot find the kernel missing"):
        driver.bind(driver.load(CODE), "missing", GRID, [])


def test_without_a_driver_it_says_so() -> None:
    with pytest.raises(UnsupportedError, match="NVIDIA's driver cannot be loaded"):
        Driver(0, "libno-such-driver.so.1")


def test_without_a_gpu_torch_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(UnsupportedError, match="torch finds no GPU"):
        find_gpu()
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UnsupportedError, match="This torch was built without CUDA"):
        find_gpu()


@pytest.mark.parametrize(
    ("arch", "capability", "runs"),
    [
        ("sm_80", (8, 0), True),
        ("sm_80", (8, 6), True),
        ("sm_86", (8, 9), True),
        ("sm_89", (8, 6), False),
        ("sm_80", (9, 0), False),
        ("sm_90a", (9, 0), True),
        ("sm_90a", (10, 0), False),
    ],
)
def test_machine_code_runs_on_its_major_architecture(arch: str, capability: tuple[int, int], runs: bool) -> None:
    assert _can_run(arch, capability) is runs
