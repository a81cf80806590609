"""From TVMScript to callable functions: one IRModule, one shared library, one thread pool shared with torch."""

from __future__ import annotations

import ctypes
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import tvm
import tvm.script
import tvm_ffi
from tvm.support import cc

from fxprune.codegen.target import CpuTarget
from fxprune.errors import CodegenError

logger = logging.getLogger(__name__)

_LAUNCH_SOURCE = Path(__file__).with_name("cpu") / "launch.cc"
_OPENMP_FUNCTIONS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


class Library:
    """A loaded shared library; its file is gone once it is loaded.

    Attributes:
        size_bytes: Size of the shared library.
        shares_threads: Whether its parallel loops run on torch's OpenMP threads.
    """

    def __init__(self, scripts: Mapping[str, str], target: CpuTarget) -> None:
        """Compile, link and load.

        Args:
            scripts: TVMScript of each function by its global symbol.
            target: The CPU to compile for.

        Raises:
            CodegenError: TVM or the C++ compiler refuses; the message names the functions.
        """
        _check_compiler()
        with tempfile.TemporaryDirectory(prefix="fxprune-") as folder:
            path = Path(folder) / "model.so"
            try:
                functions = {name: tvm.script.from_source(text) for name, text in scripts.items()}
                executable = tvm.compile(tvm.IRModule(functions), target=target.tvm_target())
                executable.export_library(str(path), fcompile=_link)
            except (RuntimeError, ValueError, TypeError) as error:
                names = ", ".join(scripts)
                raise CodegenError(f"TVM could not build {names} for {target.mcpu}: {error}") from error
            self._module = tvm.runtime.load_module(str(path))
            self.size_bytes = path.stat().st_size
            self.shares_threads = _share_threads(path, target.threads)

    def __getitem__(self, name: str) -> tvm_ffi.Function:
        """Return one function."""
        function: tvm_ffi.Function = self._module[name]
        return function


def _check_compiler() -> None:
    if shutil.which(cc.get_cc() or "g++") is None:
        raise CodegenError("No C++ compiler was found, and kernels are linked with one. Install g++ or clang++.")


def _link(output: str, objects: Sequence[str], **options: object) -> None:
    """Link TVM's object files with the OpenMP launcher; the signature is that of `export_library`'s fcompile."""
    del options
    cc.create_shared(output, [*objects, str(_LAUNCH_SOURCE)], options=["-O2", "-std=c++17"])


_link.output_format = "so"  # type: ignore[attr-defined]  # read by export_library


def _loaded_openmp() -> ctypes.CDLL | None:
    """Return the OpenMP runtime that torch has loaded into this process, if it has GNU's entry points."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    paths = {line.split(maxsplit=5)[-1].strip() for line in maps.read_text().splitlines() if "omp" in line}
    for path in sorted(path for path in paths if ".so" in path):
        library = ctypes.CDLL(path)
        if all(hasattr(library, name) for name in _OPENMP_FUNCTIONS):
            return library
    return None


def _share_threads(path: Path, threads: int) -> bool:
    """Point the library's parallel loops at torch's threads; False leaves them on TVM's own pool."""
    openmp, library = _loaded_openmp(), ctypes.CDLL(str(path))
    if openmp is None or not hasattr(library, "__TVMBackendParallelLaunch"):
        return False
    slots = (ctypes.c_void_p * len(_OPENMP_FUNCTIONS)).in_dll(library, "fxprune_openmp")
    for index, name in enumerate(_OPENMP_FUNCTIONS):
        slots[index] = ctypes.cast(getattr(openmp, name), ctypes.c_void_p).value
    ctypes.c_int.in_dll(library, "fxprune_threads").value = threads
    launch = ctypes.cast(library.fxprune_parallel_launch, ctypes.c_void_p).value
    ctypes.c_void_p.in_dll(library, "__TVMBackendParallelLaunch").value = launch
    return True
