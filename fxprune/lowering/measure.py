"""Time candidates for one layer against each other and against dense torch, interleaved."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from fxprune.codegen.build import Library
from fxprune.codegen.cpu.rows import RowsSchedule
from fxprune.codegen.format import packed_lanes
from fxprune.codegen.kernel import BoundKernel, LayerKernel, make_kernel
from fxprune.codegen.schedules import Candidate
from fxprune.codegen.target import CpuTarget
from fxprune.codegen.workload import NO_HALO, Layout, Workload
from fxprune.lowering.choice import Case
from fxprune.lowering.dense import build_dense
from fxprune.lowering.geometry import buffer_view

_ROUNDS = 7
"""Rounds of an interleaved measurement; the median of the rounds counts."""

_ROUND_SECONDS = 3e-4
"""Least time that one candidate runs in one round, seconds."""


def time_calls(calls: Sequence[Callable[[], object]], rounds: int = _ROUNDS) -> list[float]:
    """Return the median time of each call in seconds, measured in turns.

    Args:
        calls: What to run.
        rounds: Turns; one more warms up and sets how often a call runs in a turn.
    """
    repeats = []
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        repeats.append(max(1, round(_ROUND_SECONDS / max(time.perf_counter() - start, 1e-7))))
    samples: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for sample, call, repeat in zip(samples, calls, repeats, strict=True):
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            sample.append((time.perf_counter() - start) / repeat)
    return [statistics.median(sample) for sample in samples]


def trial_workload(case: Case, family: str, threads: int, channels: int | None) -> Workload:
    """Return the workload of a layer on its own: its input padded as it asks, its output without halo.

    Args:
        case: The layer.
        family: "rows" or "pixels".
        threads: Threads of the kernel.
        channels: Channels of the output buffer; None = the layer's own.
    """
    shape, layer = case.shape, case.layer
    if family == "pixels":
        x = Layout("nchw", shape.batch, shape.channels_in, shape.spatial_in)
        y = Layout("nchw", shape.batch, shape.channels_out, shape.spatial_out)
    else:
        x = Layout("nhwc", shape.batch, shape.channels_in, shape.spatial_in, shape.padding)
        y = Layout("nhwc", shape.batch, channels or shape.channels_out, shape.spatial_out, NO_HALO)
    residual = Layout(y.order, shape.batch, shape.channels_out, shape.spatial_out) if layer.residual else None
    return Workload(shape, x, y, residual, layer.activation, layer.activation_args, threads)


def build_trials(
    cases: Sequence[tuple[Case, Sequence[Candidate], bool]], target: CpuTarget
) -> list[list[Callable[[], object]]]:
    """Build every candidate of every layer in one library; return calls that are ready to be timed.

    Args:
        cases: Layer, its candidates, and whether its output channels may lie in the order of the blocks.
        target: The CPU.
    """
    kernels: list[list[LayerKernel]] = []
    scripts: dict[str, str] = {}
    for number, (case, candidates, private) in enumerate(cases):
        made = [_make_trial(case, candidate, private, target.threads) for candidate in candidates]
        scripts.update({f"trial_{number}_{i}": kernel.script(f"trial_{number}_{i}") for i, kernel in enumerate(made)})
        kernels.append(made)
    if not scripts:
        return [[] for _ in cases]
    library = Library(scripts, target)
    return [
        [_bind(library, f"trial_{number}_{i}", kernel) for i, kernel in enumerate(made)]
        for number, made in enumerate(kernels)
    ]


def _make_trial(case: Case, candidate: Candidate, private: bool, threads: int) -> LayerKernel:
    schedule = candidate.schedule
    family = "rows" if isinstance(schedule, RowsSchedule) else "pixels"
    grouped = private and family == "rows"
    lanes = packed_lanes(case.pattern, schedule.height) if grouped else None
    work = trial_workload(case, family, threads, lanes)
    return make_kernel(work, schedule, case.weight, case.pattern, case.bias, group_order=grouped)


def _bind(library: Library, name: str, kernel: LayerKernel) -> Callable[[], object]:
    work = kernel.work
    residual = torch.randn(work.residual.numel) if work.residual else None
    scratch = torch.zeros(kernel.scratch_cells) if kernel.scratch_cells else None
    x, y = torch.randn(work.x.numel), torch.zeros(work.y.numel)
    bound = BoundKernel(library[name], kernel, x, y, residual, scratch)

    def run(_library: Library = library) -> None:
        bound.run()

    return run


def dense_call(case: Case) -> Callable[[], object]:
    """Return a call of the dense layer on random channels-last inputs."""
    layer, shape = case.layer, case.shape
    weight = torch.from_numpy(case.weight).reshape(layer.weight_shape)
    bias = None if case.bias is None else torch.from_numpy(case.bias)
    module = build_dense(layer, weight, bias)
    size = tuple(layer.input.meta["val"].shape)
    layout = Layout("nhwc", shape.batch, shape.channels_in, shape.spatial_in)
    x = buffer_view(torch.randn(layout.numel), layout, layer.kind, size)
    residual = None
    if layer.residual is not None:
        layout = Layout("nhwc", shape.batch, shape.channels_out, shape.spatial_out)
        residual = buffer_view(torch.randn(layout.numel), layout, layer.kind, layer.output_shape)

    def run() -> None:
        with torch.no_grad():
            module(x, residual)

    return run
