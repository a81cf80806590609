"""From the `target` argument to what builds for it; TVM is loaded only for targets that need it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fxprune.arguments import Effort, Options
from fxprune.compiled import Specialisation
from fxprune.errors import UnsupportedError
from fxprune.graph import Captured
from fxprune.passes import PassRecord
from fxprune.report import MaskFacts

Build = Callable[[Captured, Sequence[object], Sequence[PassRecord], MaskFacts, float], Specialisation]
"""Builds from the graph after all passes, flat inputs, records, mask facts and the time at which compiling began."""


@dataclass(frozen=True)
class Backend:
    """What a target needs.

    Attributes:
        efficiency: Pairs (group height in rows, rate of the target's kernel over the dense rate); empty: no kernels.
        build: Makes what runs.
        narrow: The same for layers in 16 bits; empty: no kernels of their own.
        elsewhere: Whether it runs on another device than the CPU, where it is compiled.
    """

    efficiency: tuple[tuple[int, float], ...]
    build: Build
    narrow: tuple[tuple[int, float], ...] = ()
    elsewhere: bool = False


def open_backend(target: str | Mapping[str, object], options: Options, effort: Effort, database: Path) -> Backend:
    """Return what builds for a target.

    Args:
        target: "torch" for the cut dense graph; "cpu", "cuda" or a TVM target for kernels.
        options: Threads, precision, and whether kernels are measured.
        effort: How long kernels are searched for.
        database: The file of the records.

    Raises:
        UnsupportedError: The target is not supported.
    """
    if options.precision != "ieee" and not _is_cuda(target):
        raise UnsupportedError(
            f"options['precision'] is {options.precision!r}, and target={target!r} computes in strict float32. Only "
            "GPUs have TF32: leave it out, or pass target='cuda'."
        )
    if target == "torch":
        if effort.level != "off":
            raise UnsupportedError("target='torch' has no kernels to tune. Leave tune out, or pass target='cpu'.")
        from fxprune import shrunk

        return Backend((), shrunk.build)
    if _is_cuda(target):
        if effort.level != "off":
            raise UnsupportedError("Kernels for CUDA are not tuned by this version. Leave tune out for target='cuda'.")
        return _open_cuda(target, options)
    from fxprune import backend  # loads TVM, which `import fxprune` does not

    cpu = backend.prepare_target(target, options.threads, measured=options.measure or effort.level == "max")
    tuning = backend.open_records(database, cpu, effort)

    def build(
        captured: Captured, inputs: Sequence[object], records: Sequence[PassRecord], facts: MaskFacts, start: float
    ) -> Specialisation:
        made = backend.build(captured, inputs, records, facts, cpu, measure=options.measure, tuning=tuning, start=start)
        backend.release_unused()
        return made

    return Backend(cpu.efficiency, build)


def _is_cuda(target: object) -> bool:
    """Whether a target is "cuda", or of kind cuda as a mapping or JSON text."""
    if isinstance(target, str) and target != "cuda":
        try:
            target = json.loads(target)
        except json.JSONDecodeError:
            return False
    return target == "cuda" or (isinstance(target, Mapping) and target.get("kind") == "cuda")


def _open_cuda(target: str | Mapping[str, object], options: Options) -> Backend:
    from fxprune import backend_cuda

    gpu = backend_cuda.prepare_target(target, "tf32" if options.precision == "tf32" else "ieee")

    def build(
        captured: Captured, inputs: Sequence[object], records: Sequence[PassRecord], facts: MaskFacts, start: float
    ) -> Specialisation:
        return backend_cuda.build(captured, inputs, records, facts, gpu, measure=options.measure, start=start)

    return Backend(gpu.efficiency, build, gpu.narrow_efficiency, elsewhere=True)
