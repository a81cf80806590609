"""Time candidates for one layer against each other and against dense torch, interleaved."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from fxprune.codegen.ahead import look_ahead
from fxprune.codegen.build import Library
from fxprune.codegen.cpu.bands import cut_freely
from fxprune.codegen.kernel import BoundKernel, LayerKernel, make_kernel
from fxprune.codegen.memory import Pool, rounded
from fxprune.codegen.schedules import Candidate, block_lanes, may_overwrite
from fxprune.codegen.target import CpuTarget
from fxprune.codegen.workload import Halo, Layout, Workload, spread_cells
from fxprune.lowering.choice import Case, family_of
from fxprune.lowering.dense import build_dense
from fxprune.lowering.geometry import buffer_view

_ROUNDS = 7
"""Rounds of an interleaved measurement; the best round counts: a shared machine only ever adds time."""

_LEAST_ROUNDS, _MOST_SECONDS = 2, 0.3
"""A call that takes long has fewer rounds: as many as this time holds, seconds, yet at least two."""

_ROUND_SECONDS = 3e-4
"""Least time that one candidate runs in one round, seconds."""

_PASSES = 5
"""Times that all layers are measured over, one after another; the best counts. A virtual machine moves its cores apart
and together within seconds, and the order of a layer's candidates differs between the two."""

_BEHIND = 1.3
"""What took so many times the best of its layer is not measured in the passes that follow."""


class TrialCall:
    """A call on the buffers of a rig, which are written anew before each call that is timed.

    In a model a layer reads what the one before it has just written. From the L2 cache that takes up to twice as long
    as what was only read since, whichever core wrote it, and the order of a layer's candidates is another one.

    Attributes:
        run: The call alone.
    """

    def __init__(self, run: Callable[[], object], read: Sequence[torch.Tensor]) -> None:
        """Take the call and the buffers that it reads."""
        self.run, self._read = run, tuple(read)

    def __call__(self) -> None:
        """Run once."""
        self.run()

    def time_fresh(self) -> float:
        """Return the seconds of one call after its buffers were written; their values stay."""
        for buffer in self._read:
            buffer.mul_(1.0)
        start = time.perf_counter()
        self.run()
        return time.perf_counter() - start


def time_calls(calls: Sequence[Callable[[], object]], rounds: int = _ROUNDS) -> list[float]:
    """Return the best time of each call in seconds, measured in turns.

    Args:
        calls: What to run.
        rounds: Turns at most; one more warms up and sets how often a call runs, and in how many turns.
    """
    repeats, turns = [], []
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        took = max(time.perf_counter() - start, 1e-7)
        repeats.append(max(1, round(_ROUND_SECONDS / took)))
        turns.append(min(rounds, max(_LEAST_ROUNDS, int(_MOST_SECONDS / took))))
    samples: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds):
        for sample, call, repeat, most in zip(samples, calls, repeats, turns, strict=True):
            if turn >= most:
                continue
            sample.append(_time_repeated(call, repeat) / repeat)
    return [min(sample) for sample in samples]


def _time_repeated(call: Callable[[], object], repeat: int) -> float:
    """Return the seconds of so many calls."""
    if isinstance(call, TrialCall):
        return sum(call.time_fresh() for _ in range(repeat))
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return time.perf_counter() - start


def time_in_passes(layers: Sequence[Sequence[Callable[[], object]]]) -> list[list[float]]:
    """Return the best time of every call of every layer, seconds."""
    best = [[math.inf] * len(calls) for calls in layers]
    for _ in range(_PASSES):
        for calls, times in zip(layers, best, strict=True):
            running = [i for i, seconds in enumerate(times) if seconds <= _BEHIND * min(times)]
            for i, seconds in zip(running, time_calls([calls[i] for i in running]), strict=True):
                times[i] = min(times[i], seconds)
    return best


@dataclass(frozen=True)
class Trial:
    """A layer as it would lie if row-lane kernels ran all layers.

    Attributes:
        case: The layer.
        private: Whether its output channels may lie in the order of the blocks.
        x_halo: Halo of its input.
        y_halo: Halo of its output.
        last_reader: Whether nothing reads its residual afterwards.
    """

    case: Case
    private: bool
    x_halo: Halo
    y_halo: Halo
    last_reader: bool


def trial_workload(trial: Trial, family: str, threads: int, lanes: int | None = None) -> Workload:
    """Return the workload of a layer on its own.

    Args:
        trial: The layer.
        family: "rows" or "pixels".
        threads: Threads of the kernel.
        lanes: Lanes of all blocks, if the output's channels lie in their order; None = the layer's channels.
    """
    shape, layer = trial.case.shape, trial.case.layer
    if family == "pixels":
        x = Layout("nchw", shape.batch, shape.channels_in, shape.spatial_in, spread=True)
        y = Layout("nchw", shape.batch, shape.channels_out, shape.spatial_out, spread=True)
    else:
        channels = spread_cells(shape.channels_out if lanes is None else lanes)
        x = Layout("nhwc", shape.batch, spread_cells(shape.channels_in), shape.spatial_in, trial.x_halo)
        y = Layout("nhwc", shape.batch, channels, shape.spatial_out, trial.y_halo)
    work = Workload(shape, x, y, y if layer.residual else None, layer.activation, layer.activation_args, threads)
    return cut_freely(work) if family == "pixels" else work


def candidate_workload(trial: Trial, candidate: Candidate, threads: int) -> Workload:
    """Return the workload of a candidate, in place if the layer may overwrite its residual.

    Args:
        trial: The layer.
        candidate: What runs it.
        threads: Threads of the kernel.
    """
    schedule, case, family = candidate.schedule, trial.case, family_of(candidate.schedule)
    grouped = trial.private and family == "rows"
    lanes = block_lanes(case.pattern, schedule, case.shape.groups) if grouped else None
    work = trial_workload(trial, family, threads, lanes)
    return replace(work, in_place=trial.last_reader and may_overwrite(schedule, work))


class Rig:
    """The input, output and residual that all trials share, on large pages.

    In a model a layer finds its input in the cache, because the layer before has just written it, and writes memory
    that another layer has used. Trials with buffers of their own push each other out of the cache, and all of them,
    dense ones too, then take as long as the memory does.
    """

    def __init__(self, works: Sequence[Workload]) -> None:
        """Allocate what the largest of the layers needs."""
        sizes = [
            max((work.x.numel for work in works), default=0),
            max((work.y.numel for work in works), default=0),
            max((work.residual.numel for work in works if work.residual), default=0),
        ]
        pool = Pool(sum(rounded(size) for size in sizes))
        self._x, self._y, self._residual = (pool.take(size).normal_() for size in sizes)

    def bind(self, library: Library, name: str, kernel: LayerKernel) -> TrialCall:
        """Return a call of a kernel; the library lives as long as the call."""
        work = kernel.work
        residual = self._residual[: work.own_residual.numel] if work.own_residual else None
        scratch = Pool(kernel.scratch_cells).take(kernel.scratch_cells) if kernel.scratch_cells else None
        x, y = self._x[: work.x.numel], self._y[: work.y.numel]
        bound = BoundKernel(library[name], kernel, x, y, residual, scratch)
        look_ahead([(kernel, bound)])

        def run(_library: Library = library) -> None:
            bound.run()

        added = y if work.in_place else residual
        return TrialCall(run, [x] if added is None else [x, added])

    def dense(self, case: Case) -> TrialCall:
        """Return a call of the dense layer on channels-last inputs."""
        layer, work = case.layer, _dense_workload(case)
        weight = torch.from_numpy(case.weight).reshape(layer.weight_shape)
        bias = None if case.bias is None else torch.from_numpy(case.bias)
        module = build_dense(layer, weight, bias)
        read = [self._x[: work.x.numel]]
        x = buffer_view(read[0], work.x, layer.dims, tuple(layer.input.meta["val"].shape))
        residual = None
        if work.residual is not None:
            read.append(self._residual[: work.residual.numel])
            residual = buffer_view(read[1], work.residual, layer.dims, layer.output_shape)

        def run() -> None:
            with torch.no_grad():
                module(x, residual)

        return TrialCall(run, read)


def _dense_workload(case: Case) -> Workload:
    """Return the layer as torch computes it, channels last."""
    shape, layer = case.shape, case.layer
    x = Layout("nhwc", shape.batch, shape.channels_in, shape.spatial_in)
    y = Layout("nhwc", shape.batch, shape.channels_out, shape.spatial_out)
    return Workload(shape, x, y, y if layer.residual else None, layer.activation, layer.activation_args, 1)


def dense_call(case: Case) -> TrialCall:
    """Return a call of the dense layer on random channels-last inputs of its own."""
    return Rig([_dense_workload(case)]).dense(case)


def build_trials(
    trials: Sequence[tuple[Trial, Sequence[Candidate]]], target: CpuTarget
) -> tuple[Rig, list[list[TrialCall]]]:
    """Build every candidate of every layer in one library; return calls that are ready to be timed, and their rig.

    Args:
        trials: Layer and its candidates.
        target: The CPU.
    """
    kernels: list[list[LayerKernel]] = []
    scripts: dict[str, str] = {}
    for number, (trial, candidates) in enumerate(trials):
        made = [_make_trial(trial, candidate, target.threads) for candidate in candidates]
        scripts.update({f"trial_{number}_{i}": kernel.script(f"trial_{number}_{i}") for i, kernel in enumerate(made)})
        kernels.append(made)
    works = [kernel.work for made in kernels for kernel in made]
    rig = Rig([*works, *(_dense_workload(trial.case) for trial, _ in trials)])
    if not scripts:
        return rig, [[] for _ in trials]
    library = Library(scripts, target)
    calls = [
        [rig.bind(library, f"trial_{number}_{i}", kernel) for i, kernel in enumerate(made)]
        for number, made in enumerate(kernels)
    ]
    return rig, calls


def _make_trial(trial: Trial, candidate: Candidate, threads: int) -> LayerKernel:
    schedule, case = candidate.schedule, trial.case
    work = candidate_workload(trial, candidate, threads)
    grouped = trial.private and family_of(schedule) == "rows"
    return make_kernel(work, schedule, case.weight, case.pattern, case.bias, group_order=grouped)
