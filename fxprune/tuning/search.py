"""The search: every layer's trials that the records do not have, then a run-off of its best against dense."""

from __future__ import annotations

import concurrent.futures
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace

from torch import fx

from fxprune.codegen.schedules import Candidate
from fxprune.codegen.target import CpuTarget
from fxprune.covering import cover_at
from fxprune.lowering.choice import Case, family_of
from fxprune.lowering.known import Known, candidate_text
from fxprune.lowering.layer_text import DENSE
from fxprune.lowering.measure import Trial, build_trials, dense_call, time_calls, time_in_passes
from fxprune.lowering.trials import find_trials
from fxprune.records.record import Record
from fxprune.tuning.alone import measuring
from fxprune.tuning.measure import measure_batch
from fxprune.tuning.plan import find_candidates, make_job, plan_batches
from fxprune.tuning.progress import Show, Standing
from fxprune.tuning.trial import Batch, Outcome

logger = logging.getLogger(__name__)

_FINALISTS = 5
"""Candidates of each family that are timed once more, in turns with each other and with dense: times that were taken
minutes apart are a tenth apart by chance."""


class Search:
    """One search over the layers of a model."""

    def __init__(
        self, cases: Mapping[fx.Node, Case], target: CpuTarget, known: Known, executor: Executor | None, show: Show
    ) -> None:
        """Find what is to be tried.

        Args:
            cases: The layers.
            target: The CPU.
            known: The records, which are added to.
            executor: Runs the trials; None = this process, one batch after another.
            show: Is told of every step.
        """
        kinds, self._trials = find_trials(cases)
        self._counts = Counter(kinds.values())
        self._target, self._known, self._executor, self._show = target, known, executor, show
        self._done = self._failed = self._total = 0
        self._start = time.monotonic()

    def run(self, seconds: float | None) -> Standing:
        """Search; return how far it came.

        Args:
            seconds: No batch begins later than this; None = all trials.
        """
        self._measure_dense()
        batches = self._plan()
        self._total = sum(len(batch.jobs) for batch in batches)
        self._tell()
        changed = set()
        for batch, outcomes in self._run_batches(batches, None if seconds is None else self._start + seconds):
            self._write(batch, outcomes)
            changed.add(batch.workload)
            self._tell()
        self._run_off(sorted(changed))
        logger.info("%s", self._standing())
        return self._standing()

    def _measure_dense(self) -> None:
        """Time the dense layers that no record has."""
        for workload, trial in self._trials.items():
            if DENSE not in self._known.of(workload):
                with measuring():
                    (seconds,) = time_calls([dense_call(trial.case)])
                self._known.write([Record(self._known.context, workload, DENSE, seconds)])

    def _plan(self) -> list[Batch]:
        """Return the trials that no record has, of the layers that take longest first."""
        order = sorted(self._trials, key=lambda workload: -self._dense_us(workload) * self._counts[workload])
        wanted = {}
        for workload in order:
            known = self._known.of(workload)
            found = find_candidates(self._trials[workload], self._target)
            wanted[workload] = [
                make_job(candidate, trial, self._target)
                for candidate, trial in found
                if candidate_text(candidate) not in known
            ]
        return plan_batches(wanted, self._target)

    def _run_batches(
        self, batches: Sequence[Batch], deadline: float | None
    ) -> Iterator[tuple[Batch, Sequence[Outcome]]]:
        """Yield batches with their outcomes as they end."""
        if self._executor is None:
            for batch in batches:
                if deadline is not None and time.monotonic() > deadline:
                    return
                yield batch, measure_batch(batch)
            return
        futures = {self._executor.submit(measure_batch, batch): batch for batch in batches}
        try:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            for future in concurrent.futures.as_completed(futures, left):
                yield futures[future], _result(future, futures[future])
        except TimeoutError:
            logger.info("the time is up: %d batches are left", sum(not future.done() for future in futures))
        finally:
            for future in futures:
                future.cancel()

    def _write(self, batch: Batch, outcomes: Sequence[Outcome]) -> None:
        self._done += len(outcomes)
        self._failed += sum(outcome.seconds is None for outcome in outcomes)
        self._known.write([self._record(batch.workload, outcome) for outcome in outcomes])

    def _record(self, workload: str, outcome: Outcome) -> Record:
        details = {"predicted_us": outcome.predicted_us}
        return Record(self._known.context, workload, outcome.candidate, outcome.seconds, outcome.note, details)

    def _run_off(self, workloads: Sequence[str]) -> None:
        """Time the best of each layer once more, in turns with dense."""
        finals = {workload: self._finalists(workload) for workload in workloads}
        pairs = [(self._at(workload, one), [one]) for workload, found in finals.items() for one in found]
        rig, built = build_trials(pairs, self._target)
        calls = iter(built)
        layers = [
            [*(call for _ in found for call in next(calls)), rig.dense(self._trials[workload].case)]
            for workload, found in finals.items()
        ]
        with measuring():
            times = time_in_passes(layers)
        for (workload, found), (*own, dense) in zip(finals.items(), times, strict=True):
            self._known.add_trials(workload, found, own, dense, final=True)
        self._tell()

    def _finalists(self, workload: str) -> list[Candidate]:
        """Return the fastest of each family: whether channels-last or planes are better is for the whole graph."""
        timed = sorted(self._known.timed(workload, final=False), key=lambda one: one[1])
        families: dict[str, list[Candidate]] = {}
        for candidate, _ in timed:
            families.setdefault(family_of(candidate.schedule), []).append(candidate)
        return [candidate for found in families.values() for candidate in found[:_FINALISTS]]

    def _at(self, workload: str, candidate: Candidate) -> Trial:
        trial = self._trials[workload]
        return replace(trial, case=cover_at(trial.case, candidate.group_height))

    def _dense_us(self, workload: str) -> float:
        return (self._known.of(workload)[DENSE].seconds or 0.0) * 1e6

    def _standing(self) -> Standing:
        best = dense = 0.0
        for workload, count in self._counts.items():
            times = [record.seconds for record in self._known.of(workload).values() if record.seconds is not None]
            best += min(times, default=0.0) * count * 1e6
            dense += self._dense_us(workload) * count
        return Standing(self._done, self._total, self._failed, best, dense, time.monotonic() - self._start)

    def _tell(self) -> None:
        self._show(self._standing())


def _result(future: Future[list[Outcome]], batch: Batch) -> list[Outcome]:
    """Return the outcomes of a batch; a worker that was lost costs its batch."""
    try:
        return future.result()
    except (concurrent.futures.BrokenExecutor, OSError) as error:
        logger.warning("a worker was lost, its %d trials are left out: %s", len(batch.jobs), error)
        return []
