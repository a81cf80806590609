"""The search for a GPU: kernels of all layers are built in bulk, on any machine, and measured in one go on the GPU."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping

from torch import fx

from fxprune.codegen.cuda.cache import open_library
from fxprune.codegen.cuda.target import CudaTarget
from fxprune.lowering.choice import Case
from fxprune.lowering.cuda.known import KnownOnGpu, workload_text
from fxprune.lowering.cuda.trials import OpenDevice, find_trials, measure_trial
from fxprune.tuning.progress import Show, Standing

logger = logging.getLogger(__name__)


def build_on_any_machine(cases: Mapping[fx.Node, Case], target: CudaTarget, show: Show) -> Standing:
    """Compile every kernel that could run a layer into the folder of FXPRUNE_CACHE_DIR; nothing is measured.

    Args:
        cases: The layers.
        target: The GPU.
        show: Is told of every step.

    Raises:
        CodegenError: TVM or nvcc refuses.
    """
    start, trials = time.monotonic(), find_trials(cases, target, None, None)
    total, done = sum(len(trial.schedules) for trial in trials), 0
    for trial in trials:
        open_library(trial.scripts(), target.arch)
        done += len(trial.schedules)
        show(Standing(done, total, 0, 0.0, 0.0, time.monotonic() - start))
    return Standing(done, total, 0, 0.0, 0.0, time.monotonic() - start)


def measure_on_gpu(
    cases: Mapping[fx.Node, Case],
    target: CudaTarget,
    known: KnownOnGpu,
    open_device: OpenDevice,
    show: Show,
    *,
    most: int | None = None,
    seconds: float | None = None,
) -> Standing:
    """Time what no record has, layer by layer; each layer's records are written when it ends.

    Args:
        cases: The layers.
        target: The GPU.
        known: The records.
        open_device: Returns the GPU with the kernels of a layer.
        show: Is told of every step.
        most: Kernels of each layer; None = all.
        seconds: No layer begins later than this; None = all layers.
    """
    start, trials = time.monotonic(), find_trials(cases, target, known, most)
    counts = Counter(workload_text(case) for case in cases.values())
    total, done, failed = sum(len(trial.schedules) for trial in trials), 0, 0

    def standing() -> Standing:
        best = sum(min(known.times_us(workload), default=0.0) * count for workload, count in counts.items())
        dense = sum((known.dense_us(workload) or 0.0) * count for workload, count in counts.items())
        return Standing(done, total, failed, best, dense, time.monotonic() - start)

    for trial in trials:
        if seconds is not None and time.monotonic() - start > seconds:
            break
        failed += measure_trial(trial, target, known, open_device)
        done += len(trial.schedules)
        show(standing())
    ended = standing()
    logger.info("%s", ended)
    return ended
