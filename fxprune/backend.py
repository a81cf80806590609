"""From an annotated graph to a program and its report: cases, choices, lowering, the guard on the whole model."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import fx

from fxprune.arguments import Effort
from fxprune.codegen.memory import release_unused
from fxprune.codegen.schedules import Schedule
from fxprune.codegen.target import CpuTarget, check_runs_here, check_versions, parse_target
from fxprune.compiled import Specialisation
from fxprune.covering import cover_all
from fxprune.errors import UnsupportedError
from fxprune.frozen.artifact import LIBRARIES
from fxprune.graph import Captured
from fxprune.layer_reports import report_layers
from fxprune.lowering.cases import find_cases
from fxprune.lowering.choice import Choice, gains
from fxprune.lowering.known import Known
from fxprune.lowering.program import Build, Program, lower
from fxprune.lowering.select import select
from fxprune.lowering.whole import WholeTimes, time_whole
from fxprune.microbatch import split_batch
from fxprune.model_report import report_model
from fxprune.passes import PassRecord
from fxprune.records.database import Database
from fxprune.report import LayerReport, MaskFacts
from fxprune.tuning.contest import Contest, hold_contest
from fxprune.tuning.progress import Show, Standing, TerminalProgress
from fxprune.tuning.search import Search

__all__ = [
    "Decision",
    "build",
    "decide",
    "keep_dense",
    "prepare_target",
    "release_unused",
    "restore",
    "search",
]

logger = logging.getLogger(__name__)

_SHARE_ALONE = 0.8
"""Share of a search's time in which layers are measured alone; the rest is for the best of each inside the model."""


def prepare_target(target: str | Mapping[str, object], threads: int | None, *, measured: bool = False) -> CpuTarget:
    """Read the target and the number of threads.

    Args:
        target: "cpu", or a TVM target of kind llvm.
        threads: Threads of the kernels; None = torch's.
        measured: Whether kernels are to be timed here.

    Raises:
        UnsupportedError: The target is not supported, or not on this machine; or the installed apache-tvm-ffi crashes
            the process.
    """
    check_versions()
    cpu = parse_target(target, threads or torch.get_num_threads())
    if cpu != parse_target("cpu", cpu.threads):
        check_runs_here(cpu, measured=measured)
    return cpu


@dataclass(frozen=True, eq=False)
class Tuning:
    """Records, and how long to search for more.

    Attributes:
        known: The records that fit a target on this machine.
        effort: How long to search.
    """

    known: Known
    effort: Effort


def open_records(database: Path, target: CpuTarget, effort: Effort) -> Tuning:
    """Return the records that fit a target on this machine.

    Args:
        database: The file.
        target: The CPU.
        effort: How long to search.
    """
    fills, needs_all = effort.level != "off", effort.level == "default"
    return Tuning(Known(Database(database), target, fills=fills, needs_all=needs_all), effort)


def search(
    gm: fx.GraphModule,
    inputs: Sequence[object],
    target: CpuTarget,
    tuning: Tuning,
    executor: Executor | None,
    progress: Show,
) -> Standing:
    """Search for faster kernels: every layer alone, then the best of each inside the model.

    Args:
        gm: The graph after all passes.
        inputs: Flat example inputs.
        target: The CPU.
        tuning: The records, and how long to search.
        executor: Runs the trials; None = this process.
        progress: Is told of every step.
    """
    parts = split_batch(gm)
    contest = Contest(parts.graph_module, find_cases(parts.graph_module)[0], inputs, parts.images)
    return _search(contest, target, tuning, executor, progress)


def _search(contest: Contest, target: CpuTarget, tuning: Tuning, executor: Executor | None, progress: Show) -> Standing:
    start, seconds = time.monotonic(), tuning.effort.seconds
    alone = Search(contest.cases, target, tuning.known, executor, progress)
    standing = alone.run(None if seconds is None else seconds * _SHARE_ALONE)
    hold_contest(contest, target, tuning.known, None if seconds is None else start + seconds)
    return standing


def build(
    captured: Captured,
    inputs: Sequence[object],
    records: Sequence[PassRecord],
    facts: MaskFacts,
    target: CpuTarget,
    *,
    measure: bool,
    tuning: Tuning | None,
    start: float,
) -> Specialisation:
    """Choose, lower, check against dense, report.

    Args:
        captured: The graph after all passes.
        inputs: Flat example inputs.
        records: What the passes did.
        facts: What the report says of the masks.
        target: The CPU.
        measure: Choose by timing on this machine.
        tuning: Records of earlier measurements, and how long to search for more.
        start: `time.perf_counter` when the compilation began.
    """
    gm = captured.graph_module
    _check_inputs(gm, inputs)
    made = decide(gm, inputs, facts, target, measure=measure, tuning=tuning)
    report = report_model(
        gm,
        inputs,
        records,
        facts,
        target=target.description,
        threads=target.threads,
        layers=made.layers,
        whole_model=made.verdict,
        overhead=made.overhead,
        libraries=LIBRARIES,
        start=start,
    )
    logger.info("compiled in %.1f s: %s", report.compile_seconds, made.verdict)
    return Specialisation(made.program, captured.out_spec, report)


@dataclass(frozen=True, eq=False)
class Decision:
    """What runs, and what the report says of it.

    Attributes:
        program: What runs.
        layers: The layers of the report.
        verdict: What was given back, sparse or dense, and why.
        overhead: Where the time of a call goes; None: not measured, or no kernels.
    """

    program: Program
    layers: tuple[LayerReport, ...]
    verdict: str
    overhead: Mapping[str, float] | None = None


def decide(
    gm: fx.GraphModule,
    inputs: Sequence[object],
    facts: MaskFacts,
    target: CpuTarget,
    *,
    measure: bool,
    tuning: Tuning | None = None,
) -> Decision:
    """Choose, lower, and check against dense.

    Args:
        gm: The graph after all passes.
        inputs: Flat example inputs.
        facts: What the report says of the masks.
        target: The CPU.
        measure: Choose by timing on this machine.
        tuning: Records of earlier measurements, and how long to search for more.
    """
    parts = split_batch(gm)
    cases, obstacles = find_cases(parts.graph_module)
    known = None if tuning is None else tuning.known
    if tuning is not None and tuning.effort.level == "max":
        with TerminalProgress() as progress:
            _search(Contest(parts.graph_module, cases, inputs, parts.images), target, tuning, None, progress)
    choices = select(cases, target, measure=measure, known=known)
    cases = cover_all(cases, choices)
    program = lower(parts.graph_module, cases, choices, target, images=parts.images)
    times = time_whole(gm, program, inputs, target, known) if measure and program.kernels else None
    program, choices, verdict = _guard(gm, program, choices, target, times)
    reports = report_layers(parts.graph_module, cases, choices, obstacles, facts, program.kernels)
    layers = tuple(_over_batch(report, parts.count) for report in reports)
    return Decision(program, layers, verdict, times.overhead if times and program.kernels else None)


def _over_batch(report: LayerReport, count: int) -> LayerReport:
    """Return what a layer does in all micro-batches."""
    if count == 1:
        return report
    batch, *rest = report.output_shape
    times = (report.predicted_us, report.measured_us, report.dense_us)
    predicted, measured, dense = (None if time is None else time * count for time in times)
    return replace(
        report,
        output_shape=(batch * count, *rest),
        macs_dense=report.macs_dense * count,
        macs_kept=report.macs_kept * count,
        macs_run=report.macs_run * count,
        predicted_us=predicted,
        measured_us=measured,
        dense_us=dense,
        reason=f"{report.reason}; {count} micro-batches of {batch}",
    )


def keep_dense(gm: fx.GraphModule, facts: MaskFacts, target: CpuTarget, reason: str) -> Decision:
    """Lower every layer to dense torch.

    Args:
        gm: The graph after all passes.
        facts: What the report says of the masks.
        target: The CPU.
        reason: Why.
    """
    cases, obstacles = find_cases(gm)
    choices = {node: Choice(None, reason) for node in cases}
    program = lower(gm, {}, {}, target)
    layers = tuple(report_layers(gm, cases, choices, obstacles, facts, program.kernels))
    return Decision(program, layers, f"dense: {reason}")


def restore(
    gm: fx.GraphModule,
    schedules: Mapping[str, Schedule],
    heights: Mapping[str, int],
    target: CpuTarget,
    build: Build,
    images: int | None,
) -> Program:
    """Lower a graph as it was lowered before.

    Args:
        gm: The graph after all passes.
        schedules: The schedules of then, by node name.
        heights: Heights that row groups were covered for, by node name, where not those of the annotations.
        target: The CPU.
        build: Makes the library.
        images: Images of a micro-batch; None = the whole batch at once.
    """
    gm = gm if images is None else split_batch(gm, images).graph_module
    cases = find_cases(gm)[0] if schedules else {}
    choices = {node: Choice(schedules.get(node.name), "", group_height=heights.get(node.name)) for node in cases}
    cases = cover_all(cases, choices)
    return lower(gm, cases, choices, target, build, images)


def _check_inputs(gm: fx.GraphModule, inputs: Sequence[object]) -> None:
    for index, value in enumerate(inputs):
        if isinstance(value, torch.Tensor) and value.device.type != "cpu":
            raise UnsupportedError(
                f"Input {index} is on {value.device}, the target is the CPU. Pass a tensor on the CPU: x.cpu()."
            )
    for node in gm.graph.nodes:
        fake = node.meta.get("val")
        if node.op == "get_attr" and isinstance(fake, torch.Tensor) and fake.device.type != "cpu":
            raise UnsupportedError(
                f"'{node.target}' is on {fake.device}, the target is the CPU. Call model.cpu() first."
            )


def _guard(
    gm: fx.GraphModule,
    program: Program,
    choices: dict[fx.Node, Choice],
    target: CpuTarget,
    times: WholeTimes | None,
) -> tuple[Program, dict[fx.Node, Choice], str]:
    """Give back the dense program if it is faster as a whole."""
    if not program.kernels:
        return program, choices, "dense: no layer gains from a kernel"
    if times is None:
        return program, choices, "sparse: chosen by the cost model, nothing was measured"
    ours, theirs = times.kernels_seconds * 1e3, times.dense_seconds * 1e3
    if gains(ours, theirs):
        return program, choices, f"sparse: measured {ours:.2f} ms, the same graph on dense torch {theirs:.2f} ms"
    reason = f"the whole model is no faster with kernels: {ours:.2f} ms, on dense torch {theirs:.2f} ms"
    given_back = {
        node: Choice(None, f"{reason}; this layer: {choice.reason}", None, choice.dense_us, choice.dense_us)
        for node, choice in choices.items()
    }
    return lower(gm, {}, {}, target), given_back, f"dense: {reason}"
