"""target="cuda": from an annotated graph to a program for a GPU, its report, and the search for its kernels."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx
from torch.utils._pytree import TreeSpec

from fxprune.arguments import Effort
from fxprune.codegen.cuda.build import CudaLibrary, find_obstacle_to_building
from fxprune.codegen.cuda.cache import check_cache, find_library, open_library
from fxprune.codegen.cuda.device import Gpu, find_gpu
from fxprune.codegen.cuda.target import ARCHITECTURES, CudaTarget, Precision, find_arch, read_cuda_target
from fxprune.codegen.cuda.tensor_tile import TensorSchedule
from fxprune.codegen.cuda.tile import ColumnsSchedule
from fxprune.codegen.target import check_versions
from fxprune.compiled import Specialisation
from fxprune.errors import ArtifactError, UnsupportedError
from fxprune.frozen.artifact import LIBRARIES
from fxprune.graph import Captured
from fxprune.guarded import GuardedProgram
from fxprune.layer_reports import report_layers
from fxprune.lowering.cases import find_cases
from fxprune.lowering.choice import Case
from fxprune.lowering.cuda.choice import CudaChoice
from fxprune.lowering.cuda.known import KnownOnGpu
from fxprune.lowering.cuda.lower import lower
from fxprune.lowering.cuda.plan import KERNEL_TYPES
from fxprune.lowering.cuda.program import CudaProgram
from fxprune.lowering.cuda.recipe import digest_texts, read_recipe
from fxprune.lowering.cuda.select import select
from fxprune.lowering.cuda.trials import OpenDevice
from fxprune.model_report import report_model
from fxprune.passes import PassRecord
from fxprune.records.database import Database
from fxprune.report import CompileReport, LayerReport, MaskFacts
from fxprune.tuning.on_gpu import build_on_any_machine, measure_on_gpu
from fxprune.tuning.progress import Show, Standing, TerminalProgress

logger = logging.getLogger(__name__)

_USUAL = 3
"""Kernels of a layer that are timed when a model is compiled on the GPU's machine without a record of it."""


def prepare_target(target: str | Mapping[str, object], precision: Precision) -> CudaTarget:
    """Read the target.

    Args:
        target: "cuda" for the GPU of this machine, or a target of kind cuda as a dict or JSON text.
        precision: What layers of float32 may be computed with.

    Raises:
        UnsupportedError: The target is not supported; or it is "cuda", and there is no GPU here.
    """
    check_versions()
    if target != "cuda":
        return read_cuda_target(json.loads(target) if isinstance(target, str) else target, precision)
    try:
        arch = find_arch(torch.cuda.get_device_capability(find_gpu()))
    except UnsupportedError as error:
        raise UnsupportedError(
            f"target='cuda' is the GPU of this machine, and it cannot be used: {error} To compile for a GPU elsewhere, "
            f"name its architecture ({', '.join(ARCHITECTURES)}): target={{'kind': 'cuda', 'arch': 'sm_90a'}}."
        ) from error
    return read_cuda_target({"kind": "cuda", "arch": arch}, precision)


@dataclass(frozen=True)
class TuningOnGpu:
    """Records, and what may be measured.

    Attributes:
        database: The file of the records.
        effort: How long to search for faster kernels here.
        here: Whether the GPU is in this machine.
        measure: Time kernels here, and let the first run decide between kernels and dense torch.
    """

    database: Path
    effort: Effort
    here: bool
    measure: bool


def _know(cases: Mapping[fx.Node, Case], target: CudaTarget, tuning: TuningOnGpu) -> KnownOnGpu:
    """Return the records, with those of layers that were measured now if the GPU is here."""
    database, effort = Database(tuning.database), tuning.effort
    if not tuning.here:
        return KnownOnGpu(database, target, None)
    name, open_device = open_here(target, open_library)
    known = KnownOnGpu(database, target, name, fills=effort.level != "off")
    obstacle = find_obstacle_to_building()
    if tuning.measure and obstacle is not None:
        logger.info("no kernel is timed before the choice: %s", obstacle)
    elif tuning.measure:
        most = None if effort.level == "max" else _USUAL
        with TerminalProgress() as progress:
            measure_on_gpu(cases, target, known, open_device, progress, most=most, seconds=effort.seconds)
    return known


def open_here(target: CudaTarget, find: Callable[[Mapping[str, str], str], CudaLibrary]) -> tuple[str, OpenDevice]:
    """Return the name of this machine's GPU, and what brings kernels to it.

    Args:
        target: What kernels are for.
        find: Makes or finds the library of some TVMScript for an architecture.

    Raises:
        UnsupportedError: There is no GPU.
    """
    gpu = find_gpu()
    return torch.cuda.get_device_name(gpu), lambda scripts: Gpu(find(scripts, target.arch), gpu)


def search(
    gm: fx.GraphModule,
    target: CudaTarget,
    database: Path,
    progress: Show,
    *,
    only: str | None = None,
    seconds: float | None = None,
) -> Standing:
    """Search for faster kernels.

    Args:
        gm: The graph after all passes.
        target: The GPU.
        database: The file of the records.
        progress: Is told of every step.
        only: "build": compile every kernel and measure nothing. "measure": measure what was compiled so and compile
            nothing. None: both.
        seconds: No layer begins to be measured later than this; None = all layers.

    Raises:
        UnsupportedError: There is no GPU to measure on, or no folder for built kernels where one is needed.
        CodegenError: A kernel cannot be built, or was not built.
    """
    cases, _ = find_cases(gm, depthwise=False, types=KERNEL_TYPES)
    if only is not None:
        check_cache()
    if only == "build":
        return build_on_any_machine(cases, target, progress)
    name, open_device = open_here(target, open_library if only is None else find_library)
    known = KnownOnGpu(Database(database), target, name, fills=True)
    return measure_on_gpu(cases, target, known, open_device, progress, seconds=seconds)


def build(
    captured: Captured,
    inputs: Sequence[object],
    records: Sequence[PassRecord],
    facts: MaskFacts,
    target: CudaTarget,
    *,
    tuning: TuningOnGpu,
    start: float,
) -> Specialisation:
    """Choose, lower, compile, report.

    Args:
        captured: The graph after all passes.
        inputs: Flat example inputs.
        records: What the passes did.
        facts: What the report says of the masks.
        target: The GPU.
        tuning: Records, and what may be measured.
        start: `time.perf_counter` when the compilation began.
    """
    gm = captured.graph_module
    cases, obstacles = find_cases(gm, depthwise=False, types=KERNEL_TYPES)
    choices = select(cases, target, _know(cases, target, tuning))
    kernels = lower(gm, cases, choices, target, guarded=tuning.measure)
    verdict = _sum_up(choices, target)
    report = report_model(
        gm,
        inputs,
        records,
        facts,
        target=target.description,
        threads=torch.get_num_threads(),
        layers=report_layers(gm, cases, choices, obstacles, facts, kernels.kernels),
        whole_model=verdict,
        libraries=LIBRARIES,
        start=start,
    )
    logger.info("compiled in %.1f s: %s", report.compile_seconds, verdict)
    return guard(gm, facts, kernels, captured.out_spec, report)


def guard(
    gm: fx.GraphModule, facts: MaskFacts, kernels: CudaProgram, out_spec: TreeSpec, report: CompileReport
) -> Specialisation:
    """Return what runs; its first run decides between kernels and dense torch, if the program's recipe says so.

    Args:
        gm: The graph after all passes.
        facts: What the report says of the masks.
        kernels: The program.
        out_spec: How its flat results become what the model returns.
        report: What was done.
    """
    if not kernels.kernels or not kernels.recipe["guarded"]:
        return Specialisation(kernels, out_spec, report)
    reason = "as a whole the model is faster on dense torch on this GPU"
    dense, layers, _ = keep_dense(gm, facts, kernels.recipe, reason)
    program = GuardedProgram(kernels, dense)
    return Specialisation(program, out_spec, report, verdict=lambda: program.verdict, dense_layers=layers)


def restore(gm: fx.GraphModule, recipe: Mapping[str, object], binary: bytes | None) -> CudaProgram:
    """Make a program again from what was kept of it; a GPU is not needed.

    Args:
        gm: The graph after all passes.
        recipe: The program's recipe.
        binary: The bytes of its library, empty if it has no kernels; then neither TVM's compiler nor nvcc is needed.
            None = compile the kernels again.

    Raises:
        ArtifactError: The kernels are not those that belong to the graph.
    """
    target, choices = read_recipe(recipe)
    cases, _ = find_cases(gm, depthwise=False, types=KERNEL_TYPES)

    def take_saved(texts: Mapping[str, str], arch: str) -> CudaLibrary:
        if digest_texts(texts) != recipe["functions"]:
            raise ArtifactError(
                f"The saved kernels for {arch} are not those that this version of fxprune makes for the saved graph. "
                "Pass native='rebuild'."
            )
        return CudaLibrary.from_binary(binary or b"")

    dense = CudaChoice(None, "as it was saved")
    chosen = {node: choices.get(node.name, dense) for node in cases}
    guarded = bool(recipe["guarded"])
    return lower(gm, cases, chosen, target, None if binary is None else take_saved, guarded=guarded)


def keep_dense(
    gm: fx.GraphModule, facts: MaskFacts, recipe: Mapping[str, object], reason: str
) -> tuple[CudaProgram, tuple[LayerReport, ...], str]:
    """Lower every layer to dense torch on a GPU.

    Args:
        gm: The graph after all passes.
        facts: What the report says of the masks.
        recipe: The program's recipe, for its target.
        reason: Why.

    Returns:
        The program, the layers of its report, and its verdict.
    """
    target, _ = read_recipe(recipe)
    cases, obstacles = find_cases(gm, depthwise=False, types=KERNEL_TYPES)
    choices = {node: CudaChoice(None, reason) for node in cases}
    layers = report_layers(gm, cases, choices, obstacles, facts, {})
    return lower(gm, cases, choices, target), tuple(layers), f"dense: {reason}"


def _sum_up(choices: Mapping[fx.Node, CudaChoice], target: CudaTarget) -> str:
    """Say what was chosen for the whole model."""
    kernels = sum(choice.schedule is not None for choice in choices.values())
    measured = sum(choice.dense_us is not None for choice in choices.values())
    times = f"{measured} layers were measured" if measured else "nothing was measured"
    if not kernels:
        gain = "gains" if measured == len(choices) > 0 else f"is predicted to gain on {target.device}"
        return f"dense: no layer {gain}; {times}"
    by = "times" if measured == len(choices) else f"the cost model for {target.device}"
    both = "times and " if 0 < measured < len(choices) else ""
    return (
        f"sparse: {kernels} of {len(choices)} layers on kernels for {target.arch}, chosen by {both}{by}"
        f"{_name_units(choices)}; {times}"
    )


def _name_units(choices: Mapping[fx.Node, CudaChoice]) -> str:
    """Say what the kernels compute with."""
    schedules = [choice.schedule for choice in choices.values()]
    tensor = [schedule.cell_bytes for schedule in schedules if isinstance(schedule, TensorSchedule)]
    names = {
        " in strict float32": any(isinstance(schedule, ColumnsSchedule) for schedule in schedules),
        " on tensor cores in TF32": 4 in tensor,
        " on tensor cores": 2 in tensor,
    }
    return " and".join(name for name, used in names.items() if used)
