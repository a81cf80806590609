"""Where the code will run: a TVM target, its vector width and register count, and the threads to use."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass

from fxprune.codegen.host import missing_features
from fxprune.codegen.process import BuildError, serve
from fxprune.errors import UnsupportedError

EFFICIENCY = ((1, 0.40), (2, 0.70), (4, 0.85), (8, 0.90), (16, 0.95), (32, 1.0))
"""Measured on ResNet-50's layers (AVX-512, two cores, random columns): what a group's height is worth."""

_GOOD_FFI = ((0, 1, 14), (0, 1, 15))
"""apache-tvm-ffi from the first (included) to the second (excluded) works with TVM 0.27; 0.1.15 crashes the process."""


@dataclass(frozen=True)
class CpuTarget:
    """A CPU to compile for.

    Attributes:
        mcpu: LLVM's name of the processor.
        lanes: float32 lanes of the widest vector: 16 AVX-512, 8 AVX2, 4 otherwise.
        registers: Vector registers.
        threads: Threads a kernel splits its work over.
        description: The TVM target as a JSON-like dict, for the report.
        features: What the code may use of the processor, in LLVM's names: a machine without one of them cannot run it.
    """

    mcpu: str
    lanes: int
    registers: int
    threads: int
    description: str
    features: tuple[str, ...] = ()

    @property
    def efficiency(self) -> tuple[tuple[int, float], ...]:
        """Pairs (height of a row group, useful rate of the best kernel over the dense rate)."""
        return EFFICIENCY

    @property
    def machine(self) -> str:
        """Kind of processor, as `platform.machine` names it on Linux."""
        triple = json.loads(self.description).get("mtriple")
        name = platform.machine() if triple is None else str(triple).partition("-")[0]
        return {"arm64": "aarch64", "amd64": "x86_64"}.get(name, name)


def check_runs_here(target: CpuTarget, *, measured: bool) -> None:
    """Refuse a target whose kernels this machine cannot load, or cannot run although they are to be measured.

    Args:
        target: The CPU.
        measured: Whether kernels are to be timed.

    Raises:
        UnsupportedError: This machine is of another kind, or lacks a part of the processor.
    """
    if target.machine != platform.machine():
        raise UnsupportedError(
            f"The target is a processor of kind {target.machine}, this machine is {platform.machine()}, and compiled "
            "kernels are loaded where they are built. Compile on a machine of that kind."
        )
    missing = missing_features(target.machine, target.features)
    if measured and missing:
        raise UnsupportedError(
            f"Kernels for {target.mcpu} use {', '.join(missing)}, which this machine has not, and they are to be timed "
            "here. Pass options={'measure': False}, save the result and load it there."
        )


def check_versions() -> None:
    """Refuse an installed apache-tvm-ffi that crashes the process.

    Raises:
        UnsupportedError: The installed version is outside the range that works with TVM 0.27.
    """
    found = importlib.metadata.version("apache-tvm-ffi")
    numbers = tuple(int(part) for part in found.split(".")[:3] if part.isdigit())
    low, high = _GOOD_FFI
    if not low <= numbers < high:
        tvm = importlib.metadata.version("apache-tvm")
        raise UnsupportedError(
            f"apache-tvm-ffi {found} is installed; with TVM {tvm} it crashes the process. fxprune needs "
            "apache-tvm-ffi >= 0.1.14.post0, < 0.1.15. Run: pip install 'apache-tvm-ffi>=0.1.14.post0,<0.1.15'"
        )


_FEATURES = (
    *("sse4.2", "popcnt", "movbe", "bmi", "bmi2", "lzcnt", "f16c", "avx", "avx2", "fma"),
    *("avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx512bf16", "avx512vbmi"),
    *("avx512vbmi2", "avx512ifma", "avx512bitalg", "avx512vpopcntdq"),
    *("neon", "dotprod", "fullfp16", "sve"),
)
"""LLVM's names of the parts of a processor that generated code may use."""


def _vector_shape(features: frozenset[str]) -> tuple[int, int]:
    """Return lanes and registers of vectors."""
    if "avx512f" in features:
        return 16, 32
    if {"avx2", "fma"} <= features:
        return 8, 16
    return (4, 32) if "neon" in features else (4, 16)


@functools.lru_cache(maxsize=32)
def _describe(wanted: str) -> tuple[str, frozenset[str]]:
    """Have TVM complete a target; both are JSON text. Return it with the features that the processor has.

    Raises:
        BuildError: It is not a TVM target.
    """
    (answer,) = serve("describe_target", [{"wanted": json.loads(wanted), "asked": _FEATURES}])
    assert isinstance(answer, dict)
    return json.dumps(answer["target"], sort_keys=True), frozenset(answer["features"])


def parse_target(target: str | Mapping[str, object], threads: int) -> CpuTarget:
    """Read the `target` argument of `compile`.

    Args:
        target: "cpu" for this machine, or a TVM target of kind llvm as a dict or JSON text.
        threads: Threads a kernel may use.

    Raises:
        UnsupportedError: The target is not one that this version compiles for.
    """
    if isinstance(target, str) and target == "cpu":
        wanted: dict[str, object] = {"kind": "llvm"}
    elif isinstance(target, str):
        wanted = _parse_json(target)
    elif isinstance(target, Mapping):
        wanted = {str(key): value for key, value in target.items()}
    else:
        raise UnsupportedError(
            f"target is a {type(target).__name__}; pass 'cpu' or a TVM target as a dict or JSON text."
        )
    if wanted.get("kind") != "llvm":
        raise UnsupportedError(
            f"target={target!r} is not supported by this version: it compiles for 'cpu', 'cuda' or a dict of kind "
            "'llvm' or 'cuda', e.g. {'kind': 'llvm', 'mcpu': 'haswell'}."
        )
    try:
        description, features = _describe(json.dumps(wanted, sort_keys=True))
    except (BuildError, TypeError) as error:
        raise UnsupportedError(f"target={target!r} is not a TVM target: {_first_line(error)}") from error
    lanes, registers = _vector_shape(features)
    mcpu = str(json.loads(description)["mcpu"])
    return CpuTarget(mcpu, lanes, registers, threads, description, tuple(sorted(features)))


def _parse_json(text: str) -> dict[str, object]:
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        raise UnsupportedError(
            f"target={text!r} is not known: pass 'cpu', 'cuda', 'torch' or a TVM target as a dict or JSON "
            'text, e.g. \'{"kind": "llvm", "mcpu": "haswell"}\'.'
        )
    return parsed


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
