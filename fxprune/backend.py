"""From an annotated graph to a program and its report: cases, choices, lowering, the guard on the whole model."""

from __future__ import annotations

import importlib.metadata
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import fx

from fxprune.arguments import Effort
from fxprune.channels.record import compose_cuts
from fxprune.codegen.format import full_pattern, padded_stored
from fxprune.codegen.memory import release_unused
from fxprune.codegen.schedules import Schedule, stored_pattern
from fxprune.codegen.target import CpuTarget, check_runs_here, check_versions, parse_target
from fxprune.compiled import Specialisation
from fxprune.covering import cover_at
from fxprune.errors import UnsupportedError
from fxprune.graph import Captured
from fxprune.layer import find_layer
from fxprune.lowering.choice import Case, Choice, Chosen, constant
from fxprune.lowering.geometry import FLOAT32, find_obstacle, shape_of
from fxprune.lowering.known import Known
from fxprune.lowering.measure import time_calls
from fxprune.lowering.profile import profile
from fxprune.lowering.program import Build, Program, lower
from fxprune.lowering.select import NOISE, select
from fxprune.lowering.whole import WholeTimes, recall_whole, record_whole, whole_text
from fxprune.microbatch import split_batch
from fxprune.nodes import annotation_of, module_path
from fxprune.passes import PassRecord
from fxprune.records.database import Database
from fxprune.report import CompileReport, LayerReport, MaskFacts
from fxprune.tuning.progress import Show, Standing, TerminalProgress
from fxprune.tuning.search import Search

__all__ = [
    "Decision",
    "build",
    "decide",
    "find_cases",
    "keep_dense",
    "prepare_target",
    "release_unused",
    "report_layers",
    "restore",
    "search",
]

logger = logging.getLogger(__name__)

_LIBRARIES = ("fxprune", "torch", "apache-tvm", "apache-tvm-ffi")


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
    gm: fx.GraphModule, target: CpuTarget, tuning: Tuning, executor: Executor | None, progress: Show
) -> Standing:
    """Search for faster kernels.

    Args:
        gm: The graph after all passes.
        target: The CPU.
        tuning: The records, and how long to search.
        executor: Runs the trials; None = this process.
        progress: Is told of every step.
    """
    return Search(find_cases(split_batch(gm).graph_module)[0], target, tuning.known, executor, progress).run(
        tuning.effort.seconds
    )


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
    report = CompileReport(
        target=target.description,
        threads=target.threads,
        input_shapes=tuple(tuple(value.shape) for value in inputs if isinstance(value, torch.Tensor)),
        channels=tuple(map(asdict, compose_cuts(gm))),
        layers=made.layers,
        passes=tuple(asdict(record) for record in records),
        refusals=tuple((refusal.node, refusal.reason) for record in records for refusal in record.refusals),
        function_change=facts.function_change,
        whole_model=made.verdict,
        overhead=made.overhead,
        compile_seconds=time.perf_counter() - start,
        versions={name: importlib.metadata.version(name) for name in _LIBRARIES},
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
            search(gm, target, tuning, None, progress)
    choices = select(cases, target, measure=measure, known=known)
    cases = _regroup({node: choice.group_height for node, choice in choices.items()}, cases)
    program = lower(parts.graph_module, cases, choices, target, images=parts.images)
    times = _time_whole(gm, program, inputs, target, known) if measure and program.kernels else None
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


def _regroup(heights: Mapping[fx.Node, int | None], cases: Mapping[fx.Node, Case]) -> dict[fx.Node, Case]:
    """Return the cases with the row groups that were chosen for them."""
    return {node: cover_at(case, heights.get(node)) for node, case in cases.items()}


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
    cases = _regroup({node: heights.get(node.name) for node in cases}, cases)
    choices = {node: Choice(schedules.get(node.name), "") for node in cases}
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


def find_cases(
    gm: fx.GraphModule, *, depthwise: bool = True, types: Collection[torch.dtype] = FLOAT32
) -> tuple[dict[fx.Node, Case], dict[fx.Node, str]]:
    """Return the layers that kernels could compute, and why they cannot compute the others.

    Args:
        gm: The graph after all passes.
        depthwise: Whether the target has a kernel for depthwise layers.
        types: What the target has kernels for.
    """
    cases: dict[fx.Node, Case] = {}
    obstacles: dict[fx.Node, str] = {}
    for node in gm.graph.nodes:
        layer, annotation = find_layer(node), annotation_of(node)
        if layer is None or annotation is None:
            continue
        obstacle = find_obstacle(layer, depthwise=depthwise, types=types)
        if obstacle is not None:
            obstacles[node] = obstacle
            continue
        shape = shape_of(layer)
        weight, bias = constant(gm, layer.weight), constant(gm, layer.bias)
        assert weight is not None
        cells = weight.detach().float().reshape(shape.channels_out, -1).contiguous().numpy()
        numbers = None if bias is None else bias.detach().float().contiguous().numpy()
        cases[node] = Case(
            layer, annotation, shape, cells, numbers, annotation.pattern or full_pattern(cells.shape, shape.groups)
        )
    return cases, obstacles


def _time_whole(
    gm: fx.GraphModule, program: Program, inputs: Sequence[object], target: CpuTarget, known: Known | None
) -> WholeTimes:
    """Time the whole model with kernels and on dense torch, unless the records have that."""
    name = whole_text(program, inputs)
    found = None if known is None else recall_whole(known, name)
    if found is not None:
        return found
    dense = lower(gm, {}, {}, target)
    both = [lambda: program.run(inputs), lambda: dense.run(inputs)]
    ours, theirs = time_calls(both)
    if not _gains(ours, theirs):  # a stall of a shared machine outlasts one measurement, and this one decides for good
        ours, theirs = map(min, zip((ours, theirs), time_calls(both), strict=True))
    made = WholeTimes(ours, theirs, profile(program, inputs))
    if known is not None and known.fills:
        record_whole(known, name, made)
    return made


def _gains(ours: float, theirs: float) -> bool:
    """Whether the time with kernels is less than that on dense torch, beyond noise."""
    return ours <= theirs * (1 - NOISE)


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
    if _gains(ours, theirs):
        return program, choices, f"sparse: measured {ours:.2f} ms, the same graph on dense torch {theirs:.2f} ms"
    reason = f"the whole model is no faster with kernels: {ours:.2f} ms, on dense torch {theirs:.2f} ms"
    given_back = {
        node: Choice(None, f"{reason}; this layer: {choice.reason}", None, choice.dense_us, choice.dense_us)
        for node, choice in choices.items()
    }
    return lower(gm, {}, {}, target), given_back, f"dense: {reason}"


def report_layers(
    gm: fx.GraphModule,
    cases: Mapping[fx.Node, Case],
    choices: Mapping[fx.Node, Chosen],
    obstacles: Mapping[fx.Node, str],
    facts: MaskFacts,
    sizes: Mapping[str, int],
) -> list[LayerReport]:
    """Report every layer.

    Args:
        gm: The graph after all passes.
        cases: Layers that kernels could compute.
        choices: What runs them.
        obstacles: Why no kernel could compute the others.
        facts: What the report says of the masks.
        sizes: Bytes of the packed weight of every layer that a kernel runs, by module path.
    """
    reports = []
    for node in gm.graph.nodes:
        layer, annotation = find_layer(node), annotation_of(node)
        if layer is None or annotation is None:
            continue
        choice: Chosen = choices.get(node) or Choice(None, obstacles[node])
        case, packed_bytes = cases.get(node), sizes.get(module_path(node))
        schedule = choice.schedule
        stored, heights = case.weight.size if case else annotation.mask.numel(), dict[int, int]()
        if case is not None and schedule is not None:
            pattern = stored_pattern(case.pattern, schedule, layer.groups)
            stored, heights = padded_stored(pattern, schedule.height), pattern.heights()
        dense_bytes = annotation.mask.numel() * layer.weight.meta["val"].element_size()
        reports.append(
            LayerReport(
                name=module_path(node),
                operator=layer.title,
                weight_shape=layer.weight_shape,
                output_shape=layer.output_shape,
                macs_dense=layer.macs,
                macs_kept=annotation.nnz * layer.positions,
                macs_run=stored * layer.positions,
                density=annotation.density,
                stored_density=stored / max(1, annotation.mask.numel()),
                heights=heights,
                kept_weight=facts.kept_weight.get(annotation.name, 1.0),
                kernel=choice.kernel,
                predicted_us=choice.predicted_us,
                measured_us=choice.measured_us,
                dense_us=choice.dense_us,
                reason=facts.explain(annotation.name, choice.reason),
                parameters=annotation.nnz,
                size_bytes=dense_bytes if packed_bytes is None else packed_bytes,
                dense_size_bytes=dense_bytes,
            )
        )
    return reports
