"""Choose for every layer between a kernel and dense torch, by the cost model: no GPU has to be at hand.

A layer gets a kernel only if that is predicted to be faster by a margin, and if it still is with the conversions of its
tensors between the kernels' order and torch's. Those depend on the layers around it: starting from all layers that gain
on their own, layers change sides one by one as long as the predicted time of the whole falls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from torch import fx

from fxprune.codegen.cuda.costs import floor_us, memory_us, moved_bytes
from fxprune.codegen.cuda.schedules import CudaCandidate, find_candidates, predict_dense_us
from fxprune.codegen.cuda.target import CudaTarget
from fxprune.codegen.workload import Workload
from fxprune.lowering.choice import Case
from fxprune.lowering.cuda.choice import CudaChoice
from fxprune.lowering.cuda.plan import is_made, trial_workload

MARGIN = 0.15
"""A predicted kernel must beat the predicted dense layer by this share."""

_ROUNDS = 20
"""Passes over all layers; each one that changes anything lowers the predicted time."""

_COPY_US = 3.0
"""One launch of a copy, microseconds."""


@dataclass(frozen=True)
class _Entry:
    """What is known of one layer: its workload, the best kernel, and the predicted time of the dense layer."""

    work: Workload
    best: CudaCandidate
    dense_us: float


def select(cases: Mapping[fx.Node, Case], target: CudaTarget) -> dict[fx.Node, CudaChoice]:
    """Choose what runs every layer.

    Args:
        cases: The layers that kernels could compute, by node in graph order.
        target: The GPU.
    """
    entries = {node: _examine(case, target) for node, case in cases.items()}
    alone = [node for node, entry in entries.items() if entry.best.predicted_us < entry.dense_us * (1 - MARGIN)]
    chosen = _improve(alone, cases, entries, target)
    return {node: _explain(case, entries[node], node in chosen, node in alone, target) for node, case in cases.items()}


def _examine(case: Case, target: CudaTarget) -> _Entry:
    work = trial_workload(case)
    return _Entry(work, find_candidates(work, case.pattern, target)[0], predict_dense_us(work, target))


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
            total += entry.dense_us * (1 - MARGIN)
            continue
        total += entry.best.predicted_us
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
    kernel_us, dense_us = entry.best.predicted_us, entry.dense_us
    cells = entry.work.x.cells
    kind = cells if cells != "float32" else "strict float32" if target.precision == "ieee" else target.precision
    predicted = f"predicted {kernel_us:.0f} us, dense in {kind} {dense_us:.0f} us ({target.device})"
    if chosen:
        return CudaChoice(entry.best.schedule, predicted, kernel_us)
    if gains_alone:
        reason = f"{predicted}, but converting its tensors would take the gain"
    else:
        reason = f"{_find_floor(case, entry, target)}; {predicted}"
    return CudaChoice(None, reason, dense_us)


def _find_floor(case: Case, entry: _Entry, target: CudaTarget) -> str:
    """Say which limit keeps a layer dense: bytes, multiply-adds, or the tile."""
    work, stored = entry.work, case.pattern.stored
    needed = entry.dense_us * (1 - MARGIN)
    bytes_us, least = memory_us(work, stored, target), floor_us(work, stored, target)
    if least < needed:
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
