"""Times of a whole model, with kernels and on dense torch, and their records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fxprune.lowering.known import DENSE, Known
from fxprune.lowering.program import Program
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


def whole_text(program: Program, inputs: Sequence[object]) -> str:
    """Return a name of a program: that of its graph, its kernels, the sizes of its weights and its inputs."""
    shapes = [list(value.shape) for value in inputs if isinstance(value, torch.Tensor)]
    parts = [str(program.graph_module.graph), dict(program.recipe), dict(program.kernels), shapes]
    return "model " + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def recall_whole(known: Known, name: str) -> WholeTimes | None:
    """Return the recorded times of a program, or None."""
    records = known.of(name)
    ours, dense = records.get(_KERNELS), records.get(DENSE)
    if ours is None or dense is None or ours.seconds is None or dense.seconds is None:
        return None
    return WholeTimes(ours.seconds, dense.seconds, ours.details)


def record_whole(known: Known, name: str, times: WholeTimes) -> None:
    """Record the times of a program."""
    ours = Record(known.context, name, _KERNELS, times.kernels_seconds, "", times.overhead)
    known.write([ours, Record(known.context, name, DENSE, times.dense_seconds)])
