"""The last choice between close kernels: inside the whole model, where a kernel finds what others left in the caches.

Alone, a kernel is timed with its weights and its input at hand. In the model its input lies in the cache of the core
that wrote it, its weights come from memory, and the order of kernels that are a few per cent apart is another. So the
model is lowered once more for every rival of the chosen kernels, the rivals of all kinds of layers at once, and runs in
turns with the chosen ones, timed kernel by kernel. What wins is put together and kept if the whole model is faster.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import fx

from fxprune.codegen.schedules import Candidate
from fxprune.codegen.target import CpuTarget
from fxprune.covering import cover_all
from fxprune.lowering.choice import Case, Choice, family_of
from fxprune.lowering.known import Known, candidate_text, model_text
from fxprune.lowering.layer_text import digest_of
from fxprune.lowering.measure import time_calls
from fxprune.lowering.profile import time_layers
from fxprune.lowering.program import Program, lower
from fxprune.lowering.select import select
from fxprune.lowering.trials import find_trials
from fxprune.tuning.alone import measuring

logger = logging.getLogger(__name__)

_CLOSE = 1.15
"""A kernel is a rival if alone it takes at most so many times the best of its layer."""

_BETTER = 0.985
"""A rival wins if it takes at most this share of the time of the kernel that was chosen."""

_SECONDS, _LEAST_ROUNDS, _MOST_ROUNDS = 2.0, 5, 25
"""Rounds of one comparison: as many as this time holds, within these limits."""

_UNFINISHED = "the time was up"
"""In the place of a name of all that met."""

_QUANTILE = 0.3
"""Of a kernel's times: below what disturbed it, above what happened once."""


@dataclass(frozen=True, eq=False)
class Contest:
    """The model in which kernels are compared.

    Attributes:
        gm: The graph after all passes, of one micro-batch if there are several.
        cases: Its layers that kernels could compute.
        inputs: Flat example inputs.
        images: Images of a micro-batch; None = the whole batch at once.
    """

    gm: fx.GraphModule
    cases: Mapping[fx.Node, Case]
    inputs: Sequence[object]
    images: int | None


def hold_contest(contest: Contest, target: CpuTarget, known: Known, deadline: float | None) -> None:
    """Find the kernels that are fastest inside a model, among those that were fastest alone, and record them.

    Nothing is done if the same rivals met before, or if the time is up. Rivals that the time did not suffice for meet
    in the next search.

    Args:
        contest: The model.
        target: The CPU.
        known: The records, which are read and added to.
        deadline: No comparison begins later than this, by `time.monotonic`; None = all comparisons.
    """
    kinds, unique = find_trials(contest.cases)
    if not kinds or _is_over(deadline):
        return
    model = model_text(kinds)
    if known.met(model, _digest([known.timed(kind) for kind in unique])):
        return
    choices = select(contest.cases, target, measure=True, known=known)
    chosen = {kinds[node]: choice for node, choice in choices.items()}
    timed = {kind: known.timed(kind) for kind in unique}
    rivals = {kind: _find_rivals(chosen[kind], found) for kind, found in timed.items()}

    def assemble(picked: Mapping[str, Candidate]) -> Program:
        found = {node: _swap(choice, picked.get(kinds[node])) for node, choice in choices.items()}
        return lower(contest.gm, cover_all(contest.cases, found), found, target, images=contest.images)

    names = {node.name: kind for node, kind in kinds.items()}
    best, gain = _compete(assemble, rivals, names, contest.inputs, deadline)
    logger.info("inside the model %d of %d kinds of layers run another kernel: %.3fx", len(best), len(unique), gain)
    winners = {number: best[kind] for number, kind in enumerate(unique) if kind in best}
    met = _UNFINISHED if _is_over(deadline) else _digest([*timed.values()])
    known.add_winners(model, winners, met, gain)


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() > deadline


def _digest(timed: Sequence[Sequence[tuple[Candidate, float]]]) -> str:
    """Return a name of all kernels that could meet."""
    return digest_of([sorted(candidate_text(candidate) for candidate, _ in found) for found in timed])


def _find_rivals(choice: Choice, timed: Sequence[tuple[Candidate, float]]) -> list[Candidate]:
    """Return the kernels that may run a kind of layer in the place of the chosen one, the fastest alone first."""
    near = [(seconds, candidate) for candidate, seconds in timed if family_of(candidate.schedule) == choice.family]
    ranked = sorted(near, key=lambda one: one[0])
    return [
        candidate
        for seconds, candidate in ranked
        if seconds <= _CLOSE * ranked[0][0]
        and (candidate.schedule, candidate.group_height) != (choice.schedule, choice.group_height)
    ]


def _swap(choice: Choice, candidate: Candidate | None) -> Choice:
    if candidate is None:
        return choice
    return replace(choice, schedule=candidate.schedule, group_height=candidate.group_height)


def _compete(
    assemble: Callable[[Mapping[str, Candidate]], Program],
    rivals: Mapping[str, Sequence[Candidate]],
    names: Mapping[str, str],
    inputs: Sequence[object],
    deadline: float | None,
) -> tuple[dict[str, Candidate], float]:
    """Return the rivals that won, by kind of layer, and how many times faster the model is with them.

    Args:
        assemble: Lowers the model with other kernels than the chosen ones, by kind of layer.
        rivals: By kind of layer.
        names: Kinds of layers by node name.
        inputs: Flat inputs.
        deadline: No comparison begins later.
    """
    if not any(rivals.values()):
        return {}, 1.0
    base = assemble({})
    best = _compare_all(base, assemble, rivals, names, inputs, deadline)
    if not best:
        return {}, 1.0
    final = assemble(best)
    with measuring():
        before, after = time_calls([lambda: base.run(inputs), lambda: final.run(inputs)], rounds=_MOST_ROUNDS)
    return (best, before / after) if after < before else ({}, 1.0)


def _compare_all(
    base: Program,
    assemble: Callable[[Mapping[str, Candidate]], Program],
    rivals: Mapping[str, Sequence[Candidate]],
    names: Mapping[str, str],
    inputs: Sequence[object],
    deadline: float | None,
) -> dict[str, Candidate]:
    """Return the rival that won, by kind of layer; kinds whose chosen kernel is the best are left out."""
    best: dict[str, tuple[float, Candidate]] = {}
    for number in range(max(map(len, rivals.values()))):
        if _is_over(deadline):
            logger.info("the time is up: rivals from number %d on are left", number + 1)
            break
        picked = {kind: found[number] for kind, found in rivals.items() if number < len(found)}
        with measuring():
            shares = _compare(base, assemble(picked), names, inputs)
        for kind, candidate in picked.items():
            share = shares.get(kind, 1.0)
            if share <= (best[kind][0] if kind in best else _BETTER):
                best[kind] = share, candidate
    return {kind: candidate for kind, (_, candidate) in best.items()}


def _compare(base: Program, rival: Program, names: Mapping[str, str], inputs: Sequence[object]) -> dict[str, float]:
    """Return the rival's share of the base's time for every kind of layer.

    Args:
        base: The kernels that were chosen.
        rival: Others.
        names: Kinds of layers by node name.
        inputs: Flat inputs.
    """
    start = time.perf_counter()
    samples: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    while len(samples[1]) < _LEAST_ROUNDS or (
        len(samples[1]) < _MOST_ROUNDS and time.perf_counter() - start < _SECONDS
    ):
        for program, sample in zip((base, rival), samples, strict=True):
            time_layers(program, inputs)  # brings its weights into the caches that last from call to call
            sample.append(time_layers(program, inputs))
    ours, theirs = ({name: _typical([one[name] for one in sample]) for name in sample[0]} for sample in samples)
    sums: dict[str, tuple[float, float]] = {}
    for name in ours.keys() & theirs.keys():
        before, after = sums.get(names[name], (0.0, 0.0))
        sums[names[name]] = before + ours[name], after + theirs[name]
    return {kind: after / before for kind, (before, after) in sums.items()}


def _typical(times: Sequence[float]) -> float:
    return float(np.quantile(times, _QUANTILE))
