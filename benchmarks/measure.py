"""Measure one case: build the peers, check their outputs, time them interleaved."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.case import Case, Problem, build_problem
from benchmarks.neighbours import NeighbourWatch
from benchmarks.peers import BuiltPeer, Peer, PeerError, Setting, build_peer
from benchmarks.result import CaseResult, PeerResult
from benchmarks.timing import Schedule, time_interleaved

OnStep = Callable[[str], None]
"""Told what comes next, before each step; `count_steps` says how many there are."""


class Bench:
    """Builds peers and times them; keeps the dense ones from case to case.

    A dense engine takes the same time whatever the values of its weights, so in a sweep over masks it is built once for
    each model and batch size, with the masks of the first case, and checked against the reference of that case. All
    engines are timed anew, in the same rounds, in every case.
    """

    def __init__(self, peers: Sequence[Peer], threads: int, schedule: Schedule) -> None:
        self._peers = tuple(peers)
        self._threads = threads
        self._schedule = schedule
        self._kept_for: object = None
        self._kept: dict[str, BuiltPeer | None] = {}
        self._results: dict[str, PeerResult] = {}

    def count_steps(self) -> int:
        """Number of steps of one case."""
        return len(self._peers) * (1 + self._schedule.rounds)

    def measure(self, case: Case, on_step: OnStep) -> tuple[CaseResult, dict[str, BuiltPeer]]:
        """Measure one case.

        Returns:
            The result, and the peers that passed the check, by name, ready to be called again.

        Raises:
            ValueError: The case names an unknown model or structure, or a number is out of range.
        """
        kept_for = case if case.cut else (case.model, case.batch)
        if self._kept_for != kept_for:
            self._kept_for = kept_for
            self._kept.clear()
        problem = build_problem(case)
        built = self._build_all(problem, on_step)
        watch = NeighbourWatch()
        timings = time_interleaved(
            {name: peer.forward for name, peer in built.items()},
            self._schedule,
            on_block=lambda name: on_step(f"timing {name}"),
        )
        other_cores = watch.read_cores()
        for name, timing in timings.items():
            self._results[name] = dataclasses.replace(
                self._results[name],
                median_ms=timing.median_ms,
                best_ms=timing.best_ms,
                samples_ms=timing.samples_ms,
            )
        kept = sum(int(mask.count_nonzero()) for mask in problem.masks.values())
        result = CaseResult(
            case=case,
            density=kept / sum(mask.numel() for mask in problem.masks.values()),
            macs_dense=problem.macs.dense,
            macs_kept=problem.macs.kept,
            peers=tuple(self._results[peer.name] for peer in self._peers),
            other_cores=other_cores,
        )
        return result, built

    def _build_all(self, problem: Problem, on_step: OnStep) -> dict[str, BuiltPeer]:
        """Build and check; what failed is in `self._results` with its reason, and not in the answer."""
        ready: dict[str, BuiltPeer] = {}
        with tempfile.TemporaryDirectory() as folder:
            for peer in self._peers:
                on_step(f"building {peer.name}")
                if peer.name not in self._kept:
                    self._kept[peer.name] = self._build(peer, Setting(problem, self._threads, Path(folder)))
                built = self._kept[peer.name]
                if built is not None:
                    ready[peer.name] = built
                if not peer.dense:
                    del self._kept[peer.name]
        return ready

    def _build(self, peer: Peer, setting: Setting) -> BuiltPeer | None:
        result = PeerResult(peer.name, peer.title, peer.dense, peer.settings)
        try:
            built = build_peer(peer, setting)
        except PeerError as failure:
            self._results[peer.name] = dataclasses.replace(result, reason=str(failure))
            return None
        error = setting.problem.find_error(built.forward())
        fits = error <= peer.tolerance  # False for NaN
        self._results[peer.name] = dataclasses.replace(
            result,
            build_seconds=built.build_seconds,
            error=error if math.isfinite(error) else None,
            reason="" if fits else f"wrong output: error {error:.1e} of the largest output, allowed {peer.tolerance:g}",
        )
        return built if fits else None
