"""Where the code will run: a TVM target, its vector width and register count, and the threads to use."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass

import tvm

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
    """

    mcpu: str
    lanes: int
    registers: int
    threads: int
    description: str

    @property
    def efficiency(self) -> tuple[tuple[int, float], ...]:
        """Pairs (height of a row group, useful rate of the best kernel over the dense rate)."""
        return EFFICIENCY

    def tvm_target(self) -> tvm.target.Target:
        """Build TVM's own target object."""
        return tvm.target.Target(json.loads(self.description))


def check_versions() -> None:
    """Refuse an installed apache-tvm-ffi that crashes the process.

    Raises:
        UnsupportedError: The installed version is outside the range that works with TVM 0.27.
    """
    found = importlib.metadata.version("apache-tvm-ffi")
    numbers = tuple(int(part) for part in found.split(".")[:3] if part.isdigit())
    low, high = _GOOD_FFI
    if not low <= numbers < high:
        raise UnsupportedError(
            f"apache-tvm-ffi {found} is installed; with TVM {tvm.__version__} it crashes the process. fxprune needs "
            "apache-tvm-ffi >= 0.1.14.post0, < 0.1.15. Run: pip install 'apache-tvm-ffi>=0.1.14.post0,<0.1.15'"
        )


def _vector_shape(target: tvm.target.Target) -> tuple[int, int]:
    """Return lanes and registers of a target's vectors, from LLVM's feature list."""

    def has(feature: str) -> bool:
        return bool(tvm.get_global_func("target.target_has_feature")(feature, target))

    if has("avx512f"):
        return 16, 32
    if has("avx2") and has("fma"):
        return 8, 16
    return (4, 32) if has("neon") else (4, 16)


def parse_target(target: str | Mapping[str, object], threads: int) -> CpuTarget:
    """Read the `target` argument of `compile`.

    Args:
        target: "cpu" for this machine, or a TVM target of kind llvm as a dict or JSON text.
        threads: Threads a kernel may use.

    Raises:
        UnsupportedError: The target is not one that this version compiles for.
    """
    if isinstance(target, str) and target == "cpu":
        wanted: dict[str, object] = {"kind": "llvm", "mcpu": _host_cpu()}
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
            f"target={target!r} is not supported by this version: it compiles for 'cpu' or a dict of kind 'llvm', "
            "e.g. {'kind': 'llvm', 'mcpu': 'haswell'}."
        )
    wanted.setdefault("mcpu", _host_cpu())
    try:
        made = tvm.target.Target(wanted)
        lanes, registers = _vector_shape(made)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UnsupportedError(f"target={target!r} is not a TVM target: {_first_line(error)}") from error
    return CpuTarget(str(wanted["mcpu"]), lanes, registers, threads, json.dumps(wanted, sort_keys=True))


def _host_cpu() -> str:
    return str(tvm.get_global_func("target.llvm_get_system_cpu")())


def _parse_json(text: str) -> dict[str, object]:
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        raise UnsupportedError(
            f"target={text!r} is not known: pass 'cpu' or a TVM target as a dict or JSON text, "
            'e.g. \'{"kind": "llvm", "mcpu": "haswell"}\'.'
        )
    return parsed


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
