"""CUDA source to machine code with nvcc, and what every kernel takes of a GPU."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fxprune.errors import CodegenError

_VERSION = re.compile(r"release (?P<major>\d+)\.(?P<minor>\d+)")
_KERNEL = re.compile(r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'")
_SPILLS = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill"
)
_REGISTERS = re.compile(r"Used (?P<registers>\d+) registers")
_SHARED = re.compile(r"(?P<bytes>\d+) bytes smem")


@dataclass(frozen=True)
class Resources:
    """What a kernel takes, as ptxas says.

    Attributes:
        registers: Registers of a thread.
        shared_bytes: Shared memory of a thread block.
        spill_bytes: Bytes that a thread stores to memory for want of registers.
        stack_bytes: Bytes of a thread's stack frame.
    """

    registers: int
    shared_bytes: int
    spill_bytes: int
    stack_bytes: int


@dataclass(frozen=True)
class DeviceCode:
    """Machine code of some kernels.

    Attributes:
        arch: What it was compiled for, e.g. "sm_90a".
        toolkit: Version of the CUDA toolkit, e.g. (13, 0); a driver has to know the major one.
        cubin: The code, an ELF file's bytes.
        resources: What each kernel takes, by its symbol.
    """

    arch: str
    toolkit: tuple[int, int]
    cubin: bytes
    resources: Mapping[str, Resources]


def find_nvcc() -> str | None:
    """Return the path of nvcc: in $CUDA_HOME or $CUDA_PATH, else on the search path, else /usr/local/cuda."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = [*(shutil.which("nvcc", path=str(Path(home) / "bin")) for home in homes), shutil.which("nvcc")]
    places.append(shutil.which("nvcc", path="/usr/local/cuda/bin"))
    return next((place for place in places if place), None)


def compile_cuda(source: str, arch: str) -> DeviceCode:
    """Compile CUDA source; no GPU is needed.

    Args:
        source: The text.
        arch: e.g. "sm_90a".

    Raises:
        CodegenError: There is no nvcc, or it refuses.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise CodegenError(
            "No nvcc was found in $CUDA_HOME, $CUDA_PATH, on the search path or in /usr/local/cuda, and CUDA kernels "
            "are compiled with it. Install the CUDA toolkit (no GPU is needed), or set CUDA_HOME."
        )
    with tempfile.TemporaryDirectory(prefix="fxprune-") as folder:
        text, cubin = Path(folder) / "model.cu", Path(folder) / "model.cubin"
        text.write_text(source)
        command = [nvcc, "-cubin", f"-arch={arch}", "-O3", "-std=c++17", "-Xptxas", "-v", "-o", str(cubin), str(text)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        if done.returncode != 0:
            raise CodegenError(
                f"{shlex.join(command)} ended with code {done.returncode}: {(done.stderr or done.stdout).strip()}. "
                f"Is {arch} one that this CUDA toolkit compiles for?"
            )
        return DeviceCode(arch, _read_version(nvcc), cubin.read_bytes(), read_resources(done.stderr))


def _read_version(nvcc: str) -> tuple[int, int]:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    found = _VERSION.search(text)
    if found is None:
        raise CodegenError(f"{nvcc} --version says no version that fxprune can read: {text.strip()}")
    return int(found["major"]), int(found["minor"])


def read_resources(report: str) -> dict[str, Resources]:
    """Read what `ptxas -v` says.

    Args:
        report: Its lines.

    Raises:
        CodegenError: The lines about a kernel are not what they were with CUDA 13.0.
    """
    found: dict[str, Resources] = {}
    parts = _KERNEL.split(report)[1:]
    for name, lines in zip(parts[::3], parts[2::3], strict=True):
        spills, registers, shared = _SPILLS.search(lines), _REGISTERS.search(lines), _SHARED.search(lines)
        if spills is None or registers is None:
            raise CodegenError(f"ptxas says of {name!r} neither registers nor spills that fxprune can read: {lines}")
        found[name] = Resources(
            registers=int(registers["registers"]),
            shared_bytes=int(shared["bytes"]) if shared else 0,
            spill_bytes=int(spills["stores"]) + int(spills["loads"]),
            stack_bytes=int(spills["stack"]),
        )
    return found
