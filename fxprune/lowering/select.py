"""Choose for every layer between a kernel and dense torch, by measurement or by the cost model.

Layers of one shape, epilogue and pattern size are measured once. Every layer then computes in the order of activations,
channels-last or planes, that makes the sum of all layers and of the copies between them least (`orders`). A kernel is
taken only if it beats dense by more than the noise.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

from torch import fx

from fxprune.codegen.cpu.winograd_plan import WinogradSchedule
from fxprune.codegen.pixel_schedules import pixels_candidates
from fxprune.codegen.row_schedules import rows_candidates
from fxprune.codegen.schedules import Candidate, depthwise_candidates, predict_dense_us
from fxprune.codegen.target import CpuTarget
from fxprune.codegen.winograd_schedules import weights_us, winograd_candidates
from fxprune.codegen.workload import Workload
from fxprune.layer import Layer
from fxprune.lowering.choice import NOISE, Case, Choice, family_of
from fxprune.lowering.copies import copy_costs
from fxprune.lowering.geometry import is_depthwise
from fxprune.lowering.known import Known, candidate_text, model_text, read_candidate
from fxprune.lowering.layer_text import DENSE
from fxprune.lowering.measure import Trial, build_trials, candidate_workload, time_in_passes, trial_workload
from fxprune.lowering.orders import Family, activations, choose_orders
from fxprune.lowering.trials import find_trials

logger = logging.getLogger(__name__)

MODEL_MARGIN = 0.15
"""Without a measurement the predicted kernel must beat the predicted dense layer by this share."""

_HOPELESS = 1.6
"""A family whose best prediction is this many times the dense prediction is not measured; nor are Winograd kernels
beside row-lane kernels, or those beside them, whose best prediction is so much less."""

_CLOSE_TO_ROWS, _CLOSE_TO_PLANES, _CLOSE_TO_SHORT, _SHORT = 1.1, 2.0, 2.5, 4
"""A family is measured if its best prediction is within a factor of the other's: planes within the first one of
row-lane kernels; those within the second of planes, which most layers around would have to copy, or within the third
where planes have blocks of fewer rows: they wait for their inputs, and may take longer than a layer computed whole."""

_EXCHANGE_RATE = 15e3
"""Bytes a microsecond that a core reads of what another one has written; 12 to 17 GB/s on an Intel Xeon."""

_LEAVE_US = 150.0
"""What a layer on torch between two kernels costs besides its time, in microseconds: the chain of kernels ends, torch's
code and weights have left the caches, and input and output are copied. In ResNet-50 at 7x7 on an Intel Xeon 300."""

_LARGEST_FULL = 8_000_000
"""Largest weight, in cells, of a layer without a mask that kernels compete for; packing would double its memory."""

_FAMILIES: tuple[Family, ...] = ("rows", "pixels")


@dataclass(frozen=True)
class _Option:
    """A kernel that could run a layer.

    Attributes:
        candidate: What runs it.
        time_us: Its own time, microseconds.
        unseen_us: What it adds to the model's time besides: other cores wrote its input or read its output, and weights
            come from memory.
    """

    candidate: Candidate
    time_us: float
    unseen_us: float = 0.0

    @property
    def cost_us(self) -> float:
        """What it adds to the time of the model, microseconds."""
        return self.time_us + self.unseen_us


@dataclass(frozen=True)
class _Entry:
    """What is known of one kind of layer.

    Attributes:
        best: The kernel of each family that costs least alone.
        dense_us: Time of the dense layer, microseconds.
        source: Whence the times come.
        winner: The kernel that was fastest inside the model, if that is known.
    """

    best: Mapping[str, _Option]
    dense_us: float
    source: Literal["recorded", "measured", "predicted"]
    winner: _Option | None = None


def select(
    cases: Mapping[fx.Node, Case], target: CpuTarget, *, measure: bool, known: Known | None = None
) -> dict[fx.Node, Choice]:
    """Choose what runs every layer.

    Args:
        cases: The layers that kernels could compute, by node in graph order.
        target: The CPU.
        measure: Time the candidates of layers without records; False trusts the cost model there.
        known: Records, which are used first and, if it says so, added to.
    """
    kinds, unique = find_trials(cases)
    entries = {} if known is None else _recall(unique, target, known)
    rest = {kind: trial for kind, trial in unique.items() if kind not in entries}
    entries |= _measure(rest, target, known) if measure else _predict(rest, target)
    if known is not None and kinds:
        entries |= _prefer_winners(entries, unique, known.winners(model_text(kinds)), target, known)
    found = {node: entries[kinds[node]] for node in cases}
    orders = _find_orders(found, target, known, measure=measure)
    families = {node: min(_options(found[node], orders[node]))[1] for node in cases}
    return {
        node: _choose(case, found[node], orders[node], leaves=_is_between_kernels(case.layer, families))
        for node, case in cases.items()
    }


def _is_between_kernels(layer: Layer, families: Mapping[fx.Node, str]) -> bool:
    """Whether kernels write a layer's input and alone read its output."""
    users = list(layer.node.users)
    return bool(users) and all(families.get(near, "dense") != "dense" for near in (layer.input, *users))


def _recall(unique: Mapping[str, Trial], target: CpuTarget, known: Known) -> dict[str, _Entry]:
    """Return what the records say of layers for which they say enough."""
    entries: dict[str, _Entry] = {}
    for kind, trial in unique.items():
        records = known.of(kind)
        dense = records.get(DENSE)
        wanted = {candidate_text(one) for family in usual_candidates(trial, target).values() for one in family}
        lacking = wanted - set(records) if known.needs_all else wanted and not set(records) - {DENSE}
        if lacking or dense is None or dense.seconds is None:
            continue
        entries[kind] = _Entry(_find_best(trial, known.timed(kind), target), dense.seconds * 1e6, "recorded")
    return entries


def _prefer_winners(
    entries: Mapping[str, _Entry],
    unique: Mapping[str, Trial],
    winners: Mapping[int, str],
    target: CpuTarget,
    known: Known,
) -> dict[str, _Entry]:
    """Return the entries of layers whose fastest kernel inside this model is known, with that kernel."""
    found: dict[str, _Entry] = {}
    for number, (kind, trial) in enumerate(unique.items()):
        record = known.of(kind).get(winners.get(number, ""))
        candidate = None if record is None else read_candidate(record)
        if record is not None and record.seconds is not None and candidate is not None:
            found[kind] = replace(entries[kind], winner=_option(trial, candidate, record.seconds * 1e6, target))
    return found


def usual_candidates(trial: Trial, target: CpuTarget) -> dict[str, list[Candidate]]:
    """Return the candidates of each family, best prediction first; hopeless families have none."""
    case = trial.case
    if case.pattern.density == 1 and case.weight.size > _LARGEST_FULL:
        return {family: [] for family in _FAMILIES}
    flat = trial_workload(trial, "rows", target.threads)
    if is_depthwise(case.layer):
        return {"rows": list(depthwise_candidates(flat, target)), "pixels": []}
    rows = _without_hopeless(
        list(rows_candidates(flat, case.pattern, target, channels_in_order=not trial.private)),
        list(winograd_candidates(flat, target)),
        flat,
        is_full=case.pattern.density == 1,
    )
    work = trial_workload(trial, "pixels", target.threads)
    planes = [] if case.layer.kind == "linear" else list(pixels_candidates(work, case.pattern, target))
    dense = predict_dense_us(work, target)
    found = {"rows": rows, "pixels": planes}
    for family, candidates in found.items():
        candidates.sort(key=lambda candidate: candidate.predicted_us)
        if candidates and candidates[0].predicted_us > _HOPELESS * dense:
            found[family] = []
    most = min((_close_to(candidates[0]) for candidates in found.values() if candidates), default=0.0)
    return {
        family: [] if candidates and candidates[0].predicted_us > most else candidates
        for family, candidates in found.items()
    }


def _close_to(best: Candidate) -> float:
    """Return the longest prediction that is worth a measurement beside this one of the other family."""
    if family_of(best.schedule) == "rows":
        return best.predicted_us * _CLOSE_TO_ROWS
    return best.predicted_us * (_CLOSE_TO_PLANES if best.schedule.height >= _SHORT else _CLOSE_TO_SHORT)


def _without_hopeless(
    rows: list[Candidate], fast: list[Candidate], work: Workload, *, is_full: bool
) -> list[Candidate]:
    """Return the row-lane and Winograd candidates without those that are predicted far behind the other kind.

    The model does not know what it takes to store rows one by one, so row-lane kernels stay unless all cells are there.
    """
    least_rows, least_fast = (
        min((one.predicted_us + _unseen_us(work, one) for one in kind), default=math.inf) for kind in (rows, fast)
    )
    kept = [one for one in rows if not is_full or one.predicted_us <= _HOPELESS * least_fast]
    return kept + [one for one in fast if one.predicted_us <= _HOPELESS * least_rows]


def _predict(unique: Mapping[str, Trial], target: CpuTarget) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}
    for key, trial in unique.items():
        found = usual_candidates(trial, target)
        best = {
            family: _option(trial, candidates[0], candidates[0].predicted_us, target)
            for family, candidates in found.items()
            if candidates
        }
        dense = predict_dense_us(trial_workload(trial, "rows", target.threads), target)
        entries[key] = _Entry(best, dense, "predicted")
    return entries


def _measure(unique: Mapping[str, Trial], target: CpuTarget, known: Known | None) -> dict[str, _Entry]:
    """Time all candidates; those of all layers are built together, each layer is timed in turns with dense."""
    flat = {key: [*chain(*usual_candidates(trial, target).values())] for key, trial in unique.items()}
    rig, calls = build_trials([(trial, flat[key]) for key, trial in unique.items()], target)
    entries: dict[str, _Entry] = {}
    ready = [[*trials, rig.dense(trial.case)] for trial, trials in zip(unique.values(), calls, strict=True)]
    for (key, trial), (*times, dense) in zip(unique.items(), time_in_passes(ready), strict=True):
        best = _find_best(trial, zip(flat[key], times, strict=True), target)
        entries[key] = _Entry(best, dense * 1e6, "measured")
        if known is not None and known.fills:
            known.add_trials(key, flat[key], times, dense)
        logger.debug("%s: dense %.1f us, %s", trial.case.annotation.name, dense * 1e6, entries[key].best)
    return entries


def _find_best(trial: Trial, timed: Iterable[tuple[Candidate, float]], target: CpuTarget) -> dict[str, _Option]:
    """Return the candidate of each family that costs least; `timed` holds candidates and their seconds."""
    best: dict[str, _Option] = {}
    for candidate, seconds in timed:
        option, family = _option(trial, candidate, seconds * 1e6, target), family_of(candidate.schedule)
        best[family] = min(best.get(family, option), option, key=lambda one: one.cost_us)
    return best


def _option(trial: Trial, candidate: Candidate, time_us: float, target: CpuTarget) -> _Option:
    """Return a candidate with its time and what that does not show."""
    return _Option(candidate, time_us, _unseen_us(candidate_workload(trial, candidate, target.threads), candidate))


def _unseen_us(work: Workload, candidate: Candidate) -> float:
    """Return what a kernel adds to the time of a model besides what it takes alone, microseconds."""
    schedule = candidate.schedule
    exchange = _exchange_us(work) if getattr(schedule, "split", "") == "blocks" else 0.0
    return exchange + (weights_us(work, schedule) if isinstance(schedule, WinogradSchedule) else 0.0)


def _exchange_us(work: Workload) -> float:
    """Return what the exchange between cores takes where threads share blocks.

    Threads that share pixels mostly read what they wrote. Threads that share blocks read the whole input, and what they
    write is spread over the pixels of all threads of the next layer.
    """
    foreign = 1 - 1 / work.threads
    cells = work.x.numel * foreign + work.y.numel * foreign / work.threads
    return cells * work.x.cell_bytes / _EXCHANGE_RATE


def _options(entry: _Entry, order: Family, *, leaves: bool = False) -> list[tuple[float, str]]:
    """Return (time, family) of every way to run a layer in an order of activations; dense torch is channels-last.

    Args:
        entry: What is known of the layer.
        order: The order.
        leaves: Whether kernels run what is around it.
    """
    margin = MODEL_MARGIN if entry.source == "predicted" else NOISE
    extra = _LEAVE_US if leaves else 0.0
    dense = [(entry.dense_us * (1 - margin) + extra, "dense")] if order == "rows" else []
    return dense + ([(entry.best[order].cost_us, order)] if order in entry.best else [])


def _find_orders(
    entries: Mapping[fx.Node, _Entry], target: CpuTarget, known: Known | None, *, measure: bool
) -> dict[fx.Node, Family]:
    """Return the order of every layer; all are channels-last where no layer could gain from planes."""
    times = {
        node: {order: min(options)[0] for order in _FAMILIES if (options := _options(entry, order))}
        for node, entry in entries.items()
    }
    if not any(one.get("pixels", math.inf) < one["rows"] for one in times.values()):
        return dict.fromkeys(times, "rows")
    graph = next(iter(entries)).graph
    return choose_orders(graph, times, copy_costs(activations(graph), target, known, measure=measure))


def _choose(case: Case, entry: _Entry, order: Family, *, leaves: bool) -> Choice:
    family = min(_options(entry, order, leaves=leaves))[1]
    verb, timed = entry.source, entry.source != "predicted"
    times = {name: option.time_us for name, option in entry.best.items()} | {"dense": entry.dense_us}
    listed = ", ".join(f"{name} {time:.0f} us" for name, time in sorted(times.items(), key=lambda item: item[1]))
    dense_us = entry.dense_us if timed else None
    if family == "dense":
        reason = f"{verb} {listed}" if entry.best else _why_no_candidate(case, listed, verb)
        return Choice(None, reason, None if timed else entry.dense_us, dense_us, dense_us)
    if leaves and min(_options(entry, order))[1] == "dense":
        listed += f"; torch between kernels counts {_LEAVE_US:.0f} us more"
    option = entry.best[family]
    if entry.winner is not None and family_of(entry.winner.candidate.schedule) == family:
        option = entry.winner
    candidate, measured = option.candidate, option.time_us if timed else None
    height = candidate.group_height
    return Choice(candidate.schedule, f"{verb} {listed}", candidate.predicted_us, measured, dense_us, height)


def _why_no_candidate(case: Case, listed: str, verb: str) -> str:
    """Say why no kernel was tried."""
    density = case.pattern.density
    if density == 1:
        return f"no mask and {case.weight.size} weights: dense stays; {verb} {listed}"
    return f"stored density {density:.2f} leaves no predicted gain over dense; {verb} {listed}"
