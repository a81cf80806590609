"""From the `target` argument to what builds for it; TVM is loaded only for targets that need it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from torch import fx

from fxprune.arguments import Effort, Options
from fxprune.compiled import Specialisation
from fxprune.errors import UnsupportedError
from fxprune.graph import Captured
from fxprune.passes import PassRecord
from fxprune.report import MaskFacts
from fxprune.tuning.progress import Show, Standing

SHARES = ("build", "measure")
"""What `only` of `tune` may be: the half that needs no GPU, and the half that needs no compiler."""

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
    _check_precision(target, options)
    if target == "torch":
        if effort.level != "off":
            raise UnsupportedError("target='torch' has no kernels to tune. Leave tune out, or pass target='cpu'.")
        from fxprune import shrunk

        return Backend((), shrunk.build)
    if _is_cuda(target):
        return _open_cuda(target, options, effort, database)
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


def _check_precision(target: object, options: Options) -> None:
    if options.precision != "ieee" and not _is_cuda(target):
        raise UnsupportedError(
            f"options['precision'] is {options.precision!r}, and target={target!r} computes in strict float32. Only "
            "GPUs have TF32: leave it out, or pass target='cuda'."
        )


def _is_cuda(target: object) -> bool:
    """Whether a target is "cuda", or of kind cuda as a mapping or JSON text."""
    if isinstance(target, str) and target != "cuda":
        try:
            target = json.loads(target)
        except json.JSONDecodeError:
            return False
    return target == "cuda" or (isinstance(target, Mapping) and target.get("kind") == "cuda")


def _open_cuda(target: str | Mapping[str, object], options: Options, effort: Effort, database: Path) -> Backend:
    if effort.level != "off" and target != "cuda":
        raise UnsupportedError(
            f"target={target!r} names a GPU that may be elsewhere, and tune={effort.level!r} times kernels. Pass "
            "target='cuda' on its machine, or see fxprune.tune(only=...), which builds here and measures there."
        )
    from fxprune import backend_cuda

    tuning = backend_cuda.TuningOnGpu(database, effort, target == "cuda", options.measure)
    gpu = backend_cuda.prepare_target(target, options.precision)

    def build(
        captured: Captured, inputs: Sequence[object], records: Sequence[PassRecord], facts: MaskFacts, start: float
    ) -> Specialisation:
        return backend_cuda.build(captured, inputs, records, facts, gpu, tuning=tuning, start=start)

    return Backend(gpu.efficiency, build, gpu.narrow_efficiency, elsewhere=True)


@dataclass(frozen=True)
class Search:
    """What a target needs to be tuned.

    Attributes:
        efficiency: As in `Backend`.
        run: Searches for kernels of the layers of a graph after all passes, given flat inputs; tells of every step.
        narrow: As in `Backend`.
        elsewhere: As in `Backend`.
    """

    efficiency: tuple[tuple[int, float], ...]
    run: Callable[[fx.GraphModule, Sequence[object], Show], Standing]
    narrow: tuple[tuple[int, float], ...] = ()
    elsewhere: bool = False


def open_search(
    target: str | Mapping[str, object],
    options: Options,
    database: Path,
    *,
    executor: Executor | None,
    seconds: float | None,
    only: str | None,
) -> Search:
    """Return what searches for kernels for a target.

    Args:
        target: "cpu", "cuda" or a TVM target.
        options: Threads and precision.
        database: The file of the records.
        executor: Runs the trials of a CPU.
        seconds: How long to search; None = as long as it takes.
        only: For GPUs: "build" or "measure".

    Raises:
        UnsupportedError: The target cannot be tuned, or not so.
    """
    _check_precision(target, options)
    if target == "torch":
        raise UnsupportedError("target='torch' has no kernels to tune. Pass 'cpu' or 'cuda'.")
    if _is_cuda(target):
        return _open_cuda_search(target, options, database, executor, seconds, only)
    if only is not None:
        raise UnsupportedError(f"only={only!r} is for GPUs: a CPU's kernels are built where they are measured.")
    from fxprune import backend  # loads TVM, which `import fxprune` does not

    cpu = backend.prepare_target(target, options.threads, measured=True)
    tuning = backend.open_records(database, cpu, Effort("max", seconds))
    return Search(cpu.efficiency, lambda gm, inputs, show: backend.search(gm, inputs, cpu, tuning, executor, show))


def _open_cuda_search(
    target: str | Mapping[str, object],
    options: Options,
    database: Path,
    executor: Executor | None,
    seconds: float | None,
    only: str | None,
) -> Search:
    from fxprune import backend_cuda

    if only not in (None, *SHARES):
        raise UnsupportedError(f"only={only!r} is not known; pass {' or '.join(map(repr, SHARES))}, or None for both.")
    if executor is not None:
        raise UnsupportedError(
            "A GPU's kernels are measured one layer after another in this process: leave out executor."
        )
    gpu = backend_cuda.prepare_target(target, options.precision)

    def run(gm: fx.GraphModule, _inputs: Sequence[object], show: Show) -> Standing:
        return backend_cuda.search(gm, gpu, database, show, only=only, seconds=seconds)

    return Search(gpu.efficiency, run, gpu.narrow_efficiency, elsewhere=True)
