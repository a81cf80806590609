"""A library for aarch64, built as fxprune builds any, and its functions called in a process that qemu-user emulates."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm_ffi import libinfo

from fxprune.codegen.build import build_library
from fxprune.codegen.target import CpuTarget, parse_target

EMULATOR, COMPILER = "qemu-aarch64", "aarch64-linux-gnu-g++"
_NAME_BYTES = 64
_DRIVER = Path(__file__).with_name("driver.cc")
_KINDS: dict[np.dtype[Any], int] = {np.dtype(np.int32): 0, np.dtype(np.float32): 2}

_ADDRESSED = 16

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Addressed:
    """An argument that is handed over as an address.

    Attributes:
        array: Its cells.
    """

    array: Array


Argument = Array | Addressed

missing = [name for name in (EMULATOR, COMPILER) if shutil.which(name) is None]
needs_emulator = pytest.mark.skipif(
    bool(missing),
    reason=f"{' and '.join(missing)} not found; on Debian: apt-get install qemu-user g++-aarch64-linux-gnu",
)


def aarch64(threads: int = 2) -> CpuTarget:
    """Return a processor with NEON and nothing more."""
    return parse_target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"}, threads)


class Emulated:
    """Functions built into one library for aarch64.

    Attributes:
        binary: The bytes of the shared library.
    """

    def __init__(self, scripts: Mapping[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Build the library and the program that calls it.

        Args:
            scripts: TVMScript of each function by its name.
            folder: Where files may be written.
            monkeypatch: Sets CXX while the library is linked.
        """
        self._folder = folder
        with monkeypatch.context() as patch:
            patch.setenv("CXX", COMPILER)
            self.binary = build_library(scripts, aarch64())
        (folder / "model.so").write_bytes(self.binary)
        options = ["-O1", "-std=c++17", "-rdynamic", "-I", libinfo.find_include_path()]
        subprocess.run([COMPILER, *options, "-o", str(folder / "driver"), str(_DRIVER), "-ldl", "-pthread"], check=True)

    def run(self, calls: Sequence[tuple[str, Sequence[Argument]]]) -> list[list[Array]]:
        """Return every argument of every call as it is afterwards.

        Args:
            calls: Name of a function and its flat arguments, int32 or float32.

        Raises:
            AssertionError: The process failed, or a kernel wrote around an argument; with its words.
        """
        given, written = self._folder / "given", self._folder / "written"
        given.write_bytes(b"".join(_pack(name, arguments) for name, arguments in calls))
        command = [EMULATOR, "-L", str(_system_root()), *(str(self._folder / name) for name in ("driver", "model.so"))]
        done = subprocess.run([*command, str(given), str(written)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{EMULATOR} ended with code {done.returncode}: {done.stderr}"
        cells = np.fromfile(written, dtype=np.int32)
        arrays = [[_array(argument) for argument in arguments] for _, arguments in calls]
        ends = iter(np.cumsum([array.size for row in arrays for array in row]))
        return [[cells[(end := next(ends)) - array.size : end].view(array.dtype) for array in row] for row in arrays]


def _array(argument: Argument) -> Array:
    return argument.array if isinstance(argument, Addressed) else argument


def _pack(name: str, arguments: Sequence[Argument]) -> bytes:
    parts = [struct.pack(f"={_NAME_BYTES}si", name.encode(), len(arguments))]
    for argument in arguments:
        array = _array(argument)
        kind = _KINDS[array.dtype] + _ADDRESSED * isinstance(argument, Addressed)
        parts += [struct.pack("=ii", kind, array.size), array.tobytes()]
    return b"".join(parts)


def _system_root() -> Path:
    """Return the folder whose `lib` holds aarch64's C library."""
    asked = [COMPILER, "-print-file-name=libc.so.6"]
    found = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return Path(found).resolve().parents[1]
