"""A whole model with kernels against the same graph on dense torch: their times and records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from fxprune.codegen.target import CpuTarget
from fxprune.lowering.choice import gains
from fxprune.lowering.known import Known
from fxprune.lowering.layer_text import DENSE, digest_of
from fxprune.lowering.measure import time_calls
from fxprune.lowering.profile import profile
from fxprune.lowering.program import Program, lower
from fxprune.records.record import Record

_KERNELS = "kernels"
"""The candidate of the model with its kernels."""


@dataclass(frozen=True)
class WholeTimes:
    """Times of one call.

    Attributes:
        kernels_seconds: With kernels.
        dense_seconds: The same graph on dense torch.
        overhead: Where the time with kernels goes, as `profile` returns it.
    """

    kernels_seconds: float
    dense_seconds: float
    overhead: Mapping[str, float]


def time_whole(
    gm: fx.GraphModule, program: Program, inputs: Sequence[object], target: CpuTarget, known: Known | None
) -> WholeTimes:
    """Time the whole model with kernels and on dense torch, unless the records have that.

    Args:
        gm: The graph after all passes.
        program: The model with kernels.
        inputs: Flat example inputs.
        target: The CPU.
        known: Records, which are used first and, if it says so, added to.
    """
    name = _whole_text(program, inputs)
    found = None if known is None else _recall_whole(known, name)
    if found is not None:
        return found
    dense = lower(gm, {}, {}, target)
    both = [lambda: program.run(inputs), lambda: dense.run(inputs)]
    ours, theirs = time_calls(both)
    if not gains(ours, theirs):  # a stall of a shared machine outlasts one measurement, and this one decides for good
        ours, theirs = map(min, zip((ours, theirs), time_calls(both), strict=True))
    made = WholeTimes(ours, theirs, profile(program, inputs))
    if known is not None and known.fills:
        _record_whole(known, name, made)
    return made


def _whole_text(program: Program, inputs: Sequence[object]) -> str:
    """Return a name of a program: that of its graph, its kernels, the sizes of its weights and its inputs."""
    shapes = [list(value.shape) for value in inputs if isinstance(value, torch.Tensor)]
    parts = [str(program.graph_module.graph), dict(program.recipe), dict(program.kernels), shapes]
    return "model " + digest_of(parts)


def _recall_whole(known: Known, name: str) -> WholeTimes | None:
    """Return the recorded times of a program, or None."""
    records = known.of(name)
    ours, dense = records.get(_KERNELS), records.get(DENSE)
    if ours is None or dense is None or ours.seconds is None or dense.seconds is None:
        return None
    return WholeTimes(ours.seconds, dense.seconds, ours.details)


def _record_whole(known: Known, name: str, times: WholeTimes) -> None:
    """Record the times of a program."""
    ours = Record(known.context, name, _KERNELS, times.kernels_seconds, "", times.overhead)
    known.write([ours, Record(known.context, name, DENSE, times.dense_seconds)])
