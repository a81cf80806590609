"""Choose for every layer between a kernel and dense torch, by records or by the cost model: no GPU has to be at hand.

A layer gets a kernel only if that was measured to be faster, or is predicted to be by a margin, and if it still is with
the conversions of its tensors between the kernels' order and torch's. Those depend on the layers around it: starting
from all layers that gain on their own, layers change sides one by one as long as the time of the whole falls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from torch import fx

from fxprune.codegen.cuda.costs import floor_us, memory_us, moved_bytes
from fxprune.codegen.cuda.schedules import find_candidates, predict_dense_us
from fxprune.codegen.cuda.target import CudaTarget
from fxprune.codegen.cuda.tensor_tile import AnySchedule
from fxprune.codegen.workload import Workload
from fxprune.lowering.choice import NOISE, Case
from fxprune.lowering.cuda.choice import CudaChoice
from fxprune.lowering.cuda.known import KnownOnGpu, workload_text
from fxprune.lowering.cuda.plan import is_made, trial_workload

MARGIN = 0.15
"""A predicted kernel must beat the predicted dense layer by this share."""

_ROUNDS = 20
"""Passes over all layers; each one that changes anything lowers the predicted time."""

_COPY_US = 3.0
"""One launch of a copy, microseconds."""


@dataclass(frozen=True)
class _Entry:
    """What is known of one layer: its workload, the best kernel, and the time of it and of the dense layer."""

    work: Workload
    schedule: AnySchedule
    kernel_us: float
    dense_us: float
    device: str | None
    """Where both were measured; None: they are predicted."""

    @property
    def needed_us(self) -> float:
        """The time that a kernel has to take for a gain."""
        return self.dense_us * (1 - (MARGIN if self.device is None else NOISE))


def select(
    cases: Mapping[fx.Node, Case], target: CudaTarget, known: KnownOnGpu | None = None
) -> dict[fx.Node, CudaChoice]:
    """Choose what runs every layer.

    Args:
        cases: The layers that kernels could compute, by node in graph order.
        target: The GPU.
        known: Records.
    """
    entries = {node: _examine(case, target, known) for node, case in cases.items()}
    alone = [node for node, entry in entries.items() if entry.kernel_us < entry.needed_us]
    chosen = _improve(alone, cases, entries, target)
    return {node: _explain(case, entries[node], node in chosen, node in alone, target) for node, case in cases.items()}


def _examine(case: Case, target: CudaTarget, known: KnownOnGpu | None) -> _Entry:
    work = trial_workload(case)
    candidates = find_candidates(work, case.pattern, target, every_order=True)
    if known is not None:
        workload = workload_text(case)
        found = known.best(workload, (candidate.schedule for candidate in candidates))
        dense_us = known.dense_us(workload)
        if found is not None and dense_us is not None:
            return _Entry(work, *found, dense_us, known.device)
    best = candidates[0]
    return _Entry(work, best.schedule, best.predicted_us, predict_dense_us(work, target), None)


def _improve(
    alone: Sequence[fx.Node], cases: Mapping[fx.Node, Case], entries: Mapping[fx.Node, _Entry], target: CudaTarget
) -> set[fx.Node]:
    """Return the set of layers on kernels to which no change of one layer is an improvement."""
    chosen = set(alone)
    least = _total_us(chosen, cases, entries, target)
    for _ in range(_ROUNDS):
        before = least
        for node in alone:
            changed = chosen ^ {node}
            total = _total_us(changed, cases, entries, target)
            if total < least:
                chosen, least = changed, total
        if least == before:
            break
    nothing = _total_us(set(), cases, entries, target)
    return chosen if least < nothing else set()


def _total_us(
    chosen: AbstractSet[fx.Node], cases: Mapping[fx.Node, Case], entries: Mapping[fx.Node, _Entry], target: CudaTarget
) -> float:
    """Predict the time of all layers and of the conversions between kernels and torch, microseconds."""
    kernels = {node: case for node, case in cases.items() if node in chosen}
    total = 0.0
    read: set[tuple[fx.Node, str]] = set()
    for node, case in cases.items():
        entry, layer = entries[node], case.layer
        if node not in chosen:
            total += entry.needed_us
            continue
        total += entry.kernel_us
        shape = case.shape
        cell_bytes, results = entry.work.x.cell_bytes, shape.channels_out * shape.pixels
        inputs = [(layer.input, entry.work.x.numel)]
        if layer.residual is not None:
            inputs.append((layer.residual, results))
        for source, cells in inputs:
            if not is_made(source, layer, kernels) and (source, layer.kind) not in read:
                read.add((source, layer.kind))
                total += _copy_us(cells * cell_bytes, target)
        if not all(user in kernels and is_made(node, kernels[user].layer, kernels) for user in node.users):
            total += _copy_us(results * cell_bytes, target)
    return total


def _copy_us(size: int, target: CudaTarget) -> float:
    return 2 * size / target.memory_gbps / 1e3 + _COPY_US


def _explain(case: Case, entry: _Entry, chosen: bool, gains_alone: bool, target: CudaTarget) -> CudaChoice:
    """Say what was chosen with the figures that decided."""
    kernel_us, dense_us = entry.kernel_us, entry.dense_us
    cells = entry.work.x.cells
    kind = cells if cells != "float32" else "strict float32" if target.precision == "ieee" else target.precision
    if entry.device is None:
        times = f"predicted {kernel_us:.0f} us, dense in {kind} {dense_us:.0f} us ({target.device})"
    else:
        times = f"measured {kernel_us:.1f} us, dense in {kind} {dense_us:.1f} us ({entry.device})"
    if chosen:
        reason = times
    elif gains_alone:
        reason = f"{times}, but converting its tensors would take the gain"
    else:
        reason = times if entry.device is not None else f"{_find_floor(case, entry, target)}; {times}"
    schedule, us = (entry.schedule, kernel_us) if chosen else (None, dense_us)
    if entry.device is None:
        return CudaChoice(schedule, reason, us)
    return CudaChoice(schedule, reason, None, us, dense_us)


def _find_floor(case: Case, entry: _Entry, target: CudaTarget) -> str:
    """Say which limit keeps a layer dense: bytes, multiply-adds, or the tile."""
    work, stored = entry.work, case.pattern.stored
    bytes_us, least = memory_us(work, stored, target), floor_us(work, stored, target)
    if least < entry.needed_us:
        return (
            f"no tile makes enough of stored density {case.pattern.density:.2f}: the least possible is {least:.0f} us"
        )
    cells = work.x.cells
    if bytes_us >= 2 * work.shape.macs(stored) / target.peak_gflops(cells) / 1e3:
        flop = 2 * work.shape.macs(work.shape.columns * work.shape.channels_out)
        per_byte = flop / moved_bytes(work, work.shape.columns * work.shape.channels_out)
        ridge = target.ridge(cells)
        return f"bytes forbid a gain: {per_byte:.0f} FLOP a byte dense, ridge {ridge:.0f}, least {least:.0f} us"
    return f"multiply-adds forbid a gain at stored density {case.pattern.density:.2f}: least {least:.0f} us"
