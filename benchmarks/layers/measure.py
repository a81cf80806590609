"""Time every kind of convolution of a model: its kernels, dense torch, products and copies, all in turns."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import fx, nn

from benchmarks.layers.figures import LayerFigures, LayerTable
from benchmarks.layers.machine import GEMM_SIZES, copy_call, gemm_call, gemm_flops, launch_call
from fxprune.codegen.cpu.winograd_plan import WinogradSchedule, count_tiles
from fxprune.codegen.kernel import LayerKernel
from fxprune.codegen.schedules import Candidate
from fxprune.codegen.target import CpuTarget
from fxprune.covering import cover_at
from fxprune.lowering.cases import find_cases
from fxprune.lowering.choice import Case
from fxprune.lowering.known import Known
from fxprune.lowering.measure import Rig, Trial, build_trials, time_calls
from fxprune.lowering.select import usual_candidates
from fxprune.lowering.trials import find_trials
from fxprune.nodes import module_path
from fxprune.passes import default_pipeline
from fxprune.prepare import prepare
from fxprune.tuning.plan import make_job

_RECORDED = 3
"""Recorded candidates of a layer that are timed again, best first."""

_PATIENCE_SECONDS = 5.0
"""How long a measurement is repeated while others use the cores."""

_SETTLED = 0.97
"""A measurement ends when no call was faster than this share of its best time before."""

_UNDISTURBED = 0.95
"""Products in turns with a layer reach this share of the best rate seen, or somebody else uses the cores."""

_NO_CACHE = 2**28
"""Bytes of a copy, 256 MB, that no cache of a processor holds."""


@dataclass(frozen=True, eq=False)
class _Kind:
    """Layers that are measured once.

    Attributes:
        trial: One of them.
        name: Module path of the first.
        geometry: Its geometry in the model before all passes.
        count: How many there are.
        options: Its candidates, each with the layer in the row groups that it is for.
    """

    trial: Trial
    name: str
    geometry: str
    count: int
    options: tuple[tuple[Candidate, Trial], ...]


def find_convolutions(
    model: nn.Module, masks: Mapping[str, torch.Tensor], x: torch.Tensor, target: CpuTarget
) -> dict[fx.Node, tuple[str, Case]]:
    """Return the convolutions of a model after all passes, each with its geometry in the model before them.

    Args:
        model: The model.
        masks: Its masks.
        x: Its input.
        target: The CPU.
    """
    ready = prepare(model, dict(masks), None, default_pipeline(target.efficiency, "exact"), (x,), {})
    cases, _ = find_cases(ready.captured.graph_module)
    modules = {node: model.get_submodule(module_path(node)) for node in cases}
    return {
        node: (_describe(module, case), case)
        for (node, case), module in zip(cases.items(), modules.values(), strict=True)
        if isinstance(module, nn.Conv2d)
    }


def _describe(module: nn.Conv2d, case: Case) -> str:
    """Return channels, kernel, stride and the size of the output, e.g. "64-128 3x3 /2, 28x28"."""
    stride = "" if module.stride[0] == 1 else f" /{module.stride[0]}"
    size, image = ("x".join(map(str, pair)) for pair in (module.kernel_size, case.shape.spatial_out[1:]))
    return f"{module.in_channels}-{module.out_channels} {size}{stride}, {image}"


def measure_layers(
    layers: Mapping[fx.Node, tuple[str, Case]],
    target: CpuTarget,
    known: Known | None,
    rounds: int,
    on_layer: Callable[[str], None],
) -> LayerTable:
    """Time all layers.

    Args:
        layers: Geometry and layer.
        target: The CPU.
        known: Records whose best candidates are timed besides the usual ones; None = only those.
        rounds: Rounds of every measurement; the best counts.
        on_layer: Is told the name of every layer when it was timed.
    """
    kinds = list(_find_kinds(layers, target, known))
    rig, built = build_trials([(at, [one]) for kind in kinds for one, at in kind.options], target)
    calls = iter(call.run for (call,) in built)
    bench = _Bench(rig, target, rounds)
    figures: dict[str, LayerFigures] = {}
    for kind in kinds:
        found = bench.measure(kind, [next(calls) for _ in kind.options])
        figures[kind.geometry] = figures[kind.geometry].join(found) if kind.geometry in figures else found
        on_layer(kind.name)
    memory, launch = time_calls([copy_call(_NO_CACHE), launch_call(target)], rounds)
    return LayerTable(tuple(figures.values()), _NO_CACHE / memory, launch)


def _find_kinds(layers: Mapping[fx.Node, tuple[str, Case]], target: CpuTarget, known: Known | None) -> Iterator[_Kind]:
    kinds, trials = find_trials({node: case for node, (_, case) in layers.items()})
    counts = Counter(kinds.values())
    first = {kind: node for node, kind in reversed(kinds.items())}
    for kind, trial in trials.items():
        options = [(one, trial) for family in usual_candidates(trial, target).values() for one in family]
        options += [] if known is None else _recorded(known, kind, trial)
        yield _Kind(trial, module_path(first[kind]), layers[first[kind]][0], counts[kind], tuple(options))


def _recorded(known: Known, kind: str, trial: Trial) -> Iterator[tuple[Candidate, Trial]]:
    """Yield the best recorded candidates of a layer."""
    for candidate, _ in sorted(known.timed(kind), key=lambda one: one[1])[:_RECORDED]:
        yield candidate, replace(trial, case=cover_at(trial.case, candidate.group_height))


class _Bench:
    """Times kinds of layers, each in turns with products of matrices and with a copy of as many bytes."""

    def __init__(self, rig: Rig, target: CpuTarget, rounds: int) -> None:
        self._rig, self._target, self._rounds = rig, target, rounds
        self._gemms = [gemm_call(size) for size in GEMM_SIZES]
        self._peak = float("inf")
        _, self._peak = self._time([])

    def _time(self, calls: Sequence[Callable[[], object]]) -> tuple[list[float], float]:
        """Return the best time of each call and the best FLOP/s of a product; repeated until both have settled."""
        best = [float("inf")] * (len(calls) + len(self._gemms))
        start, settled = time.perf_counter(), False
        while not settled and time.perf_counter() - start < _PATIENCE_SECONDS:
            found = list(map(min, best, time_calls([*calls, *self._gemms], self._rounds)))
            undisturbed = max(_rates(found[len(calls) :])) >= _UNDISTURBED * self._peak
            settled = undisturbed and all(new > _SETTLED * old for new, old in zip(found, best, strict=True))
            best = found
        return best[: len(calls)], max(_rates(best[len(calls) :]))

    def measure(self, kind: _Kind, calls: Sequence[Callable[[], object]]) -> LayerFigures:
        """Choose the fastest candidate or dense torch, then time it once more beside dense, products and a copy."""
        case, dense = kind.trial.case, self._rig.dense(kind.trial.case).run
        times, _ = self._time([*calls, dense])
        best = min(range(len(times)), key=lambda index: times[index])
        job = None if best == len(calls) else make_job(*kind.options[best], self._target)
        kernel = None if job is None else job.kernel()
        size = _dense_bytes(case) if kernel is None else _kernel_bytes(kernel)
        run = dense if kernel is None else calls[best]
        (seconds, dense_seconds, copied), gemm = self._time([run, dense, copy_call(size)])
        self._peak = max(self._peak, gemm)
        dense_flops = 2 * case.shape.macs(case.weight.size)
        return LayerFigures(
            name=kind.name,
            geometry=kind.geometry,
            count=kind.count,
            masked=case.annotation.density < 1,
            kernel="dense" if kernel is None else str(kernel.schedule),
            seconds=seconds,
            dense_seconds=dense_seconds,
            flops=2 * case.shape.macs(case.annotation.nnz),
            computed_flops=dense_flops if kernel is None else _computed_flops(kernel),
            size_bytes=size,
            copy_seconds=copied,
            gemm=gemm,
        )


def _rates(seconds: Sequence[float]) -> list[float]:
    """Return the FLOP/s of the products of matrices."""
    return [gemm_flops(size) / taken for size, taken in zip(GEMM_SIZES, seconds, strict=True)]


def _kernel_bytes(kernel: LayerKernel) -> int:
    """Return bytes of input, output, residual and packed arrays, as they lie."""
    work = kernel.work
    cells = work.x.numel + work.y.numel + (work.residual.numel if work.residual else 0)
    return 4 * cells + kernel.size_bytes


def _dense_bytes(case: Case) -> int:
    """Return bytes of input, output, residual and weight without halos and padding."""
    shape = case.shape
    outputs = shape.channels_out * shape.pixels * (2 if case.layer.residual is not None else 1)
    return 4 * (shape.batch * shape.channels_in * prod(shape.spatial_in) + outputs + case.weight.size)


def _computed_flops(kernel: LayerKernel) -> int:
    """Return the FLOPs that a kernel does, on zeros and on pixels that are computed twice too."""
    schedule, shape = kernel.schedule, kernel.work.shape
    if isinstance(schedule, WinogradSchedule):
        return 2 * int(kernel.arrays[0].size) * count_tiles(shape, schedule.outputs)
    if kernel.packed is None:
        return 2 * shape.macs(int(kernel.arrays[0].size))
    return 2 * kernel.packed.stored * kernel.computed_pixels
