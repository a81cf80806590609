"""From TVMScript to machine code: one CUDA source for all kernels of a model, a few runs of nvcc side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from fxprune.codegen.cuda.nvcc import DeviceCode, Resources, compile_cuda, find_nvcc
from fxprune.codegen.process import BuildError, serve
from fxprune.errors import ArtifactError, CodegenError

_MOST_RUNS = 2
"""nvcc at the same time; each takes one core and some 300 MB."""


@dataclass(frozen=True)
class CudaFunction:
    """One kernel of a built library.

    Attributes:
        part: Which of the library's codes holds it.
        symbol: Its name there.
        parameters: Names of its arguments, in order.
        resources: What it takes of a GPU.
    """

    part: int
    symbol: str
    parameters: tuple[str, ...]
    resources: Resources


@dataclass(frozen=True)
class CudaLibrary:
    """The kernels of a model as bytes; nothing of it is loaded.

    Attributes:
        arch: What it was compiled for.
        parts: Machine code.
        functions: Kernels by the name of their script.
    """

    arch: str
    parts: tuple[DeviceCode, ...]
    functions: Mapping[str, CudaFunction]

    @property
    def binary(self) -> bytes:
        """Everything as bytes: the length of the facts, the facts as JSON, the codes one after another."""
        facts = {
            "arch": self.arch,
            "parts": [{"toolkit": part.toolkit, "bytes": len(part.cubin)} for part in self.parts],
            "functions": {name: asdict(function) for name, function in self.functions.items()},
        }
        text = json.dumps(facts, sort_keys=True).encode()
        return len(text).to_bytes(_LENGTH_BYTES, "little") + text + b"".join(part.cubin for part in self.parts)

    @classmethod
    def from_binary(cls, binary: bytes) -> CudaLibrary:
        """Return the library whose bytes these are.

        Raises:
            ArtifactError: They are no library's bytes.
        """
        try:
            return _read_library(binary)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{len(binary)} bytes are no library of CUDA kernels: {error}.") from error


_LENGTH_BYTES = 8


def _read_library(binary: bytes) -> CudaLibrary:
    size = int.from_bytes(binary[:_LENGTH_BYTES], "little")
    facts = json.loads(binary[_LENGTH_BYTES : _LENGTH_BYTES + size])
    functions = {name: _read_function(written) for name, written in facts["functions"].items()}
    parts, place = [], _LENGTH_BYTES + size
    for number, written in enumerate(facts["parts"]):
        code = binary[place : place + int(written["bytes"])]
        place += int(written["bytes"])
        resources = {function.symbol: function.resources for function in functions.values() if function.part == number}
        major, minor = written["toolkit"]
        parts.append(DeviceCode(str(facts["arch"]), (int(major), int(minor)), code, resources))
    if place != len(binary):
        raise ValueError(f"{place} bytes were expected")
    return CudaLibrary(str(facts["arch"]), tuple(parts), functions)


def _read_function(written: Mapping[str, Any]) -> CudaFunction:
    resources = Resources(**{name: int(value) for name, value in written["resources"].items()})
    parameters = tuple(map(str, written["parameters"]))
    return CudaFunction(int(written["part"]), str(written["symbol"]), parameters, resources)


@dataclass(frozen=True)
class CudaSource:
    """CUDA text of some kernels.

    Attributes:
        text: The source.
        parameters: Names of every kernel's arguments in order, by the name of its script.
    """

    text: str
    parameters: Mapping[str, tuple[str, ...]]


_SYMBOL, _POINTER = "_kernel", "_ptr"
"""What TVM appends to the name of a function's kernel, and to the name of a buffer."""


def write_sources(scripts: Sequence[Mapping[str, str]], arch: str) -> list[CudaSource]:
    """Have TVM write CUDA.

    Args:
        scripts: For every source the TVMScript of its functions by global symbol.
        arch: e.g. "sm_90a".

    Raises:
        CodegenError: TVM refuses.
    """
    requests = [{"scripts": dict(share), "arch": arch} for share in scripts]
    try:
        answers = serve("write_cuda", requests)
    except BuildError as error:
        names = ", ".join(name for share in scripts for name in share)
        raise CodegenError(f"TVM could not write CUDA of {names} for {arch}: {error}") from error
    sources = []
    for share, answer in zip(scripts, answers, strict=True):
        assert isinstance(answer, dict)
        found = {name: answer["parameters"][f"{name}{_SYMBOL}"] for name in share}
        parameters = {name: tuple(str(p).removesuffix(_POINTER) for p in listed) for name, listed in found.items()}
        sources.append(CudaSource(str(answer["source"]), parameters))
    return sources


def find_obstacle_to_building() -> str | None:
    """Return why this machine cannot compile kernels, or None."""
    if os.environ.get(_RUNTIME_ONLY):
        return f"{_RUNTIME_ONLY} leaves TVM's compiler out."
    return None if find_nvcc() else "there is no nvcc."


_RUNTIME_ONLY = "TVM_USE_RUNTIME_LIB"
"""Set where only TVM's runtime is installed."""


def build_library(scripts: Mapping[str, str], arch: str) -> CudaLibrary:
    """Compile the kernels of a model; no GPU is needed.

    Args:
        scripts: TVMScript of each function by its global symbol.
        arch: e.g. "sm_90a".

    Raises:
        CodegenError: TVM or nvcc refuses.
    """
    names = sorted(scripts)
    runs = max(1, min(_MOST_RUNS, os.cpu_count() or 1, len(names)))
    shares = [{name: scripts[name] for name in names[run::runs]} for run in range(runs)]
    sources = write_sources(shares, arch) if names else []
    with ThreadPoolExecutor(_MOST_RUNS) as pool:
        parts = list(pool.map(lambda source: compile_cuda(source.text, arch), sources))
    functions = {
        name: CudaFunction(part, f"{name}{_SYMBOL}", parameters, parts[part].resources[f"{name}{_SYMBOL}"])
        for part, source in enumerate(sources)
        for name, parameters in source.parameters.items()
    }
    return CudaLibrary(arch, tuple(parts), functions)
