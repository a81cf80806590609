"""From TVMScript to callable functions: object files from TVM, one shared library, torch's threads.

TVM compiles in processes of its own (`process`); this one links the object files with `cpu/launch.cc`, which stands in
for TVM's runtime, and loads the library with apache-tvm-ffi alone.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import tvm_ffi
from tvm_ffi import libinfo

from fxprune.codegen.process import BuildError, count_idle, serve
from fxprune.codegen.target import CpuTarget
from fxprune.errors import CodegenError

logger = logging.getLogger(__name__)

_LAUNCH_SOURCE = Path(__file__).with_name("cpu") / "launch.cc"
_OPENMP_FUNCTIONS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
_TORCH_FILE = re.compile(r"/libtorch_cpu\.so[^/ ]*$")
"""Path of the library that runs torch's loops. Other packages bring OpenMP runtimes with threads of their own."""

_COMPILERS = ("g++", "clang++", "c++")

_SHARE = 10
"""Functions that are worth another build process: it takes about as long to start as to compile that many."""

_MOST_PROCESSES = 2
"""Each holds TVM's compiler, 200 MB, and some 100 MB more while it compiles."""


class Library:
    """A loaded shared library; its file is gone once it is loaded.

    Attributes:
        binary: The bytes of the shared library.
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
        self._load(build_library(scripts, target), target.threads)

    @classmethod
    def from_binary(cls, binary: bytes, threads: int) -> Library:
        """Load a library that was built before.

        Args:
            binary: Its `binary` of then, for this machine.
            threads: Threads of its parallel loops.
        """
        library = cls.__new__(cls)
        library._load(binary, threads)
        return library

    def _load(self, binary: bytes, threads: int) -> None:
        self.binary = binary
        with tempfile.TemporaryDirectory(prefix="fxprune-") as folder:
            path = Path(folder) / "model.so"
            path.write_bytes(binary)
            self._module = tvm_ffi.load_module(path, keep_module_alive=False)
        openmp = _find_openmp()
        self.shares_threads = openmp is not None
        self._module["fxprune_connect"](*(openmp or (0, 0, 0)), threads)

    @property
    def size_bytes(self) -> int:
        """Size of the shared library."""
        return len(self.binary)

    def __getitem__(self, name: str) -> tvm_ffi.Function:
        """Return one function."""
        function: tvm_ffi.Function = self._module[name]
        return function


def build_library(scripts: Mapping[str, str], target: CpuTarget) -> bytes:
    """Compile and link; return the shared library."""
    compiler = _find_compiler()
    with tempfile.TemporaryDirectory(prefix="fxprune-") as folder:
        path = Path(folder) / "model.so"
        try:
            _link(compiler, path, _build_objects(scripts, target, Path(folder)))
        except BuildError as error:
            names = ", ".join(scripts)
            raise CodegenError(f"TVM could not build {names} for {target.mcpu}: {error}") from error
        return path.read_bytes()


def _build_objects(scripts: Mapping[str, str], target: CpuTarget, folder: Path) -> list[Path]:
    """Compile the functions into object files, one for each build process."""
    worth = max(1, len(scripts) // _SHARE, min(count_idle(), len(scripts)))  # one that runs already costs nothing
    shares = _share(scripts, min(_MOST_PROCESSES, os.cpu_count() or 1, worth))
    paths = [folder / f"part_{number}.o" for number in range(len(shares))]
    wanted = json.loads(target.description)
    requests = [
        {"scripts": share, "target": wanted, "path": str(path)} for share, path in zip(shares, paths, strict=True)
    ]
    serve("build_object", requests)
    return paths


def _share(scripts: Mapping[str, str], count: int) -> list[dict[str, str]]:
    """Deal the functions out so that every share has about as much text."""
    shares: list[dict[str, str]] = [{} for _ in range(count)]
    sizes = [0] * count
    for name, text in sorted(scripts.items(), key=lambda item: -len(item[1])):
        least = sizes.index(min(sizes))
        shares[least][name] = text
        sizes[least] += len(text)
    return shares


def _find_compiler() -> list[str]:
    """Return the command of the C++ compiler."""
    named = shlex.split(os.environ.get("CXX", ""))
    command = named or [name for name in _COMPILERS if shutil.which(name)][:1]
    if not command or shutil.which(command[0]) is None:
        raise CodegenError(
            f"No C++ compiler was found{f' ({command[0]}, as CXX says)' if command else ''}, and kernels are linked "
            "with one. Install g++ or clang++."
        )
    return command


def _link(compiler: Sequence[str], output: Path, objects: Sequence[Path]) -> None:
    """Link object files with the launcher."""
    options = ["-shared", "-fPIC", "-O2", "-std=c++17", "-pthread", "-I", libinfo.find_include_path()]
    command = [*compiler, *options, "-o", str(output), *map(str, objects), str(_LAUNCH_SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(command)} ended with code {done.returncode}: {done.stderr}")


def _find_openmp() -> tuple[int, ...] | None:
    """Return the addresses of GNU's entry points in the OpenMP runtime that torch has loaded, if there are any."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    paths = {line.split(maxsplit=5)[-1].strip() for line in maps.read_text().splitlines()}
    for path in sorted(path for path in paths if _TORCH_FILE.search(path)):
        library = ctypes.CDLL(path)  # a look-up goes on in the libraries that it was linked with
        if all(hasattr(library, name) for name in _OPENMP_FUNCTIONS):
            addresses = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in _OPENMP_FUNCTIONS]
            return tuple(address or 0 for address in addresses)
    return None
