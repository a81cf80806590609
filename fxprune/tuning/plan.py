"""What is worth a trial for each kind of layer: schedules and formats together, the most promising first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest

from fxprune.codegen.pixel_schedules import pixels_space
from fxprune.codegen.row_schedules import rows_space
from fxprune.codegen.schedules import Candidate
from fxprune.codegen.target import EFFICIENCY, CpuTarget
from fxprune.codegen.winograd_schedules import winograd_space
from fxprune.covering import cover_at
from fxprune.lowering.choice import family_of
from fxprune.lowering.geometry import is_depthwise
from fxprune.lowering.known import candidate_text
from fxprune.lowering.measure import Trial, candidate_workload, trial_workload
from fxprune.lowering.select import usual_candidates
from fxprune.tuning.trial import Batch, Job

_PROMISING = 1.5
"""A candidate predicted this many times slower than the best is left out: the model errs by a third at most."""

MOST = 64
"""Candidates of one kind of layer, the usual ones besides."""

_BATCH = 8
"""Candidates that are built together: what a Ctrl-C or a kill can lose."""


def find_candidates(trial: Trial, target: CpuTarget) -> list[tuple[Candidate, Trial]]:
    """Return the candidates of a kind of layer with its row groups for each, the usual ones first, then by prediction.

    There are none where not even the usual ones are worth a measurement; depthwise layers have the usual ones only.

    Args:
        trial: The layer.
        target: The CPU.
    """
    usual = [(one, trial) for family in usual_candidates(trial, target).values() for one in family]
    if not usual or is_depthwise(trial.case.layer):
        return usual
    space = sorted(_search_space(trial, target), key=lambda item: item[0].predicted_us)
    promising = [item for item in space if item[0].predicted_us <= _PROMISING * space[0][0].predicted_us]
    found: dict[str, tuple[Candidate, Trial]] = {}
    for candidate, at in [*usual, *_by_turns(promising)[:MOST]]:
        found.setdefault(candidate_text(candidate), (candidate, at))
    return list(found.values())


def _by_turns(ranked: list[tuple[Candidate, Trial]]) -> list[tuple[Candidate, Trial]]:
    """Let the row groups of every height take turns, so that none crowds out the others."""
    by_height: dict[int | None, list[tuple[Candidate, Trial]]] = {}
    for item in ranked:
        by_height.setdefault(item[0].group_height, []).append(item)
    return [item for turn in zip_longest(*by_height.values()) for item in turn if item is not None]


def _search_space(trial: Trial, target: CpuTarget) -> Iterator[tuple[Candidate, Trial]]:
    """Yield every schedule for the row groups as they are and for those of every single height."""
    heights: list[int | None] = [None]
    if trial.case.annotation.density < 1:
        heights += [height for height, _ in EFFICIENCY if height <= trial.case.shape.channels_out]
    for height in heights:
        at = replace(trial, case=cover_at(trial.case, height))
        if height is not None and at.case.pattern == trial.case.pattern:
            continue
        flat = trial_workload(at, "rows", target.threads)
        rows = rows_space(flat, at.case.pattern, target, channels_in_order=not trial.private)
        yield from ((replace(candidate, group_height=height), at) for candidate in rows)
        if height is None:
            yield from ((candidate, at) for candidate in winograd_space(flat, target))
        if trial.case.layer.kind != "linear":
            planes = pixels_space(trial_workload(at, "pixels", target.threads), at.case.pattern, target)
            yield from ((replace(candidate, group_height=height), at) for candidate in planes)


def make_job(candidate: Candidate, trial: Trial, target: CpuTarget) -> Job:
    """Return a candidate as data that can be sent."""
    family = family_of(candidate.schedule)
    work = candidate_workload(trial, candidate, target.threads)
    grouped = trial.private and family == "rows"
    return Job(candidate_text(candidate), candidate.predicted_us, work, candidate.schedule, trial.case.pattern, grouped)


def plan_batches(wanted: Mapping[str, Sequence[Job]], target: CpuTarget) -> list[Batch]:
    """Return all jobs in batches, the first batch of every kind of layer before the second of any.

    Args:
        wanted: Jobs by workload, the most promising first; the kinds in the order of their importance.
        target: The CPU.
    """
    rounds = max((-(-len(jobs) // _BATCH) for jobs in wanted.values()), default=0)
    return [
        Batch(workload, tuple(jobs[number * _BATCH : (number + 1) * _BATCH]), target)
        for number in range(rounds)
        for workload, jobs in wanted.items()
        if len(jobs) > number * _BATCH
    ]
