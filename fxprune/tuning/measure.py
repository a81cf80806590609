"""Build and time a batch: the function that an executor runs, here or on another machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fxprune.codegen.build import build_library
from fxprune.codegen.target import CpuTarget
from fxprune.errors import CodegenError
from fxprune.tuning.alone import building, measuring
from fxprune.tuning.process import shared_process
from fxprune.tuning.trial import Batch, Job, Outcome


def measure_batch(batch: Batch) -> list[Outcome]:
    """Return what came of every job of a batch, in order.

    Args:
        batch: The candidates.
    """
    named = _named(batch)
    libraries, refused = build_batch(batch)
    times: dict[str, tuple[float | None, str]] = {}
    for binary, names in libraries:
        with measuring():
            found = shared_process().measure(binary, batch.target.threads, [(name, named[name]) for name in names])
        times |= dict(zip(names, found, strict=True))
    return [
        Outcome(job.candidate, job.predicted_us, *times.get(name, (None, refused.get(name, ""))))
        for name, job in named.items()
    ]


def build_batch(batch: Batch) -> tuple[list[tuple[bytes, Sequence[str]]], dict[str, str]]:
    """Return shared libraries with the names of their functions, and why other functions were not built.

    Args:
        batch: The candidates.
    """
    with building():
        scripts, refused = _write(_named(batch))
        libraries, unbuilt = _build(scripts, batch.target)
    return libraries, refused | unbuilt


def _named(batch: Batch) -> dict[str, Job]:
    return {f"trial_{number}": job for number, job in enumerate(batch.jobs)}


def _write(named: Mapping[str, Job]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the text of every function, and why others have none."""
    scripts: dict[str, str] = {}
    refused: dict[str, str] = {}
    for name, job in named.items():
        try:
            scripts[name] = job.kernel().script(name)
        except CodegenError as error:
            refused[name] = str(error)
    return scripts, refused


def _build(scripts: Mapping[str, str], target: CpuTarget) -> tuple[list[tuple[bytes, Sequence[str]]], dict[str, str]]:
    """Build all functions in one library, or, if that fails, each in its own; and say why others have none."""
    if not scripts:
        return [], {}
    try:
        return [(build_library(scripts, target), list(scripts))], {}
    except CodegenError as error:
        if len(scripts) == 1:
            return [], dict.fromkeys(scripts, str(error))
    libraries: list[tuple[bytes, Sequence[str]]] = []
    refused: dict[str, str] = {}
    for name, text in scripts.items():
        found, why = _build({name: text}, target)
        libraries += found
        refused |= why
    return libraries, refused
