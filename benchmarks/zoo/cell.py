"""One cell of the matrix: capture, eliminate, compare with the masked model."""

from __future__ import annotations

import dataclasses
import traceback
from dataclasses import dataclass

import torch
from torch.utils._pytree import tree_leaves

from benchmarks.zoo.bench import Bench
from benchmarks.zoo.kinds import Masks, NotApplicableError
from benchmarks.zoo.models import Problem, Shape
from benchmarks.zoo.signal import keep_signal
from fxprune.graph import annotate
from fxprune.passes import EliminateChannels, FoldBatchNorm, run_passes

GATE = 1e-9
"""Largest difference allowed, as a share of max |reference|."""


@dataclass(frozen=True)
class Key:
    """What a cell is about: a model, a kind of mask, the input shape without the batch, the batch size."""

    model: str
    kind: str
    shape: Shape
    batch: int


@dataclass(frozen=True)
class Outcome:
    """What came out.

    Attributes:
        state: "exact", "wrong", "failed", or "not applicable".
        error: max |y - reference| / max |reference| over all outputs.
        sensitivity: How much the reference changes with the input, as the same share; small values hide mistakes.
        macs_before: Multiply-adds of the masked model, as if dense.
        macs_after: Multiply-adds of the shrunk graph.
        seconds: Time of the pass alone.
        refusals: How many groups of dead channels stayed, each with a reason.
        settled: Whether a second run changes nothing.
        reason: Why the cell failed or does not apply.
    """

    state: str
    error: float | None = None
    sensitivity: float | None = None
    macs_before: int = 0
    macs_after: int = 0
    seconds: float = 0.0
    refusals: int = 0
    settled: bool | None = None
    reason: str = ""


def run_cell(key: Key, bench: Bench) -> Outcome:
    """Run a cell; whatever goes wrong in it becomes its outcome.

    Args:
        key: The cell.
        bench: What cells before it have left.
    """
    try:
        problem, masks = bench.set_up(key.model, key.kind, key.shape, key.batch)
        return _compare(key.model, problem, masks, bench)
    except NotApplicableError as error:
        return Outcome("not applicable", reason=str(error))
    except Exception as error:  # noqa: BLE001 # a cell that fails is a result
        last = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome("failed", reason=f"{type(error).__name__}: {error} ({last.name}, line {last.lineno})"[:600])


def _compare(name: str, problem: Problem, masks: Masks, bench: Bench) -> Outcome:
    model, inputs = problem.model, problem.inputs
    with torch.no_grad():
        keep_signal(model, inputs)
        expected = _leaves(model(*inputs))
        moved = _leaves(model(*(_change(x) for x in inputs)))
    gm = bench.capture(name, problem, masks)
    annotate(gm, masks)
    *_, record = run_passes(gm, (FoldBatchNorm(), EliminateChannels()))
    with torch.no_grad():
        found = _leaves(gm(*inputs))
    error = _difference(found, expected)
    (again,) = run_passes(gm, (EliminateChannels(),))
    return Outcome(
        state="exact" if error <= GATE and not again.modified else "wrong",
        error=error,
        sensitivity=_difference(moved, expected),
        macs_before=record.macs_before,
        macs_after=record.macs_after,
        seconds=round(record.seconds, 3),
        refusals=len(record.refusals),
        settled=not again.modified,
        reason="" if not again.modified else "a second run changes the graph again",
    )


def _leaves(outputs: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


def _change(x: torch.Tensor) -> torch.Tensor:
    """Return another input: a mirrored one."""
    return x.flip(-1)


def _difference(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Return the largest difference as a share of the largest expected value; infinite if NaN or a shape differs."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape or not bool(one.isfinite().all() and other.isfinite().all()):
            return float("inf")
        worst = max(worst, float((one - other).abs().max() / other.abs().max().clamp_min(1e-300)))
    return worst


def as_json(key: Key, outcome: Outcome) -> dict[str, object]:
    """Return a cell as plain data."""
    return {**dataclasses.asdict(key), "shape": list(key.shape), **dataclasses.asdict(outcome)}
