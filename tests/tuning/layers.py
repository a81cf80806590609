"""A small layer as the search sees it, and jobs that misbehave; a measuring process imports this file."""

from __future__ import annotations

import os
import time
from dataclasses import fields

import numpy as np
import torch
from torch import fx, nn

from fxprune.codegen.kernel import LayerKernel
from fxprune.codegen.target import CpuTarget
from fxprune.lowering import cases
from fxprune.lowering.choice import Case
from fxprune.lowering.measure import Trial
from fxprune.lowering.trials import find_trials
from fxprune.passes import default_pipeline
from fxprune.prepare import prepare
from fxprune.tuning.plan import find_candidates, make_job
from fxprune.tuning.trial import Job
from tests.compiling import Masks, draw_masks, row_groups

_OWN = int(os.environ.setdefault("FXPRUNE_TEST_PROCESS", str(os.getpid())))
"""The process of the tests; jobs misbehave only in others."""

X = torch.linspace(-2, 2, 64 * 14 * 14).sin().reshape(1, 64, 14, 14)


def network() -> tuple[nn.Module, Masks]:
    """Return two convolutions of different kinds and masks in row groups of 16, the same ones each time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 1)).eval()
    return model, draw_masks(model, row_groups(16, 0.15))


def find_cases(target: CpuTarget) -> dict[fx.Node, Case]:
    """Return the layers of the network after all passes."""
    model, masks = network()
    ready = prepare(model, masks, None, default_pipeline(target.efficiency, "exact"), (X,), {})
    return cases.find_cases(ready.captured.graph_module)[0]


def first_trial(target: CpuTarget) -> tuple[str, Trial]:
    """Return the 3x3 layer and its text in the records."""
    return next(iter(find_trials(find_cases(target))[1].items()))


def jobs(target: CpuTarget, count: int) -> list[Job]:
    """Return the most promising jobs of the 3x3 layer."""
    _, trial = first_trial(target)
    return [make_job(candidate, at, target) for candidate, at in find_candidates(trial, target)[:count]]


class CrashingJob(Job):
    """A job whose candidate ends its process."""

    def kernel(self) -> LayerKernel:
        """End the process."""
        if os.getpid() == _OWN:
            return super().kernel()
        os.abort()


class HangingJob(Job):
    """A job whose candidate never ends."""

    def kernel(self) -> LayerKernel:
        """Wait for ever."""
        if os.getpid() == _OWN:
            return super().kernel()
        while True:
            time.sleep(1)


class FailingJob(Job):
    """A job that raises."""

    def kernel(self) -> LayerKernel:
        """Raise."""
        if os.getpid() == _OWN:
            return super().kernel()
        raise ValueError("no such kernel")


def disguise(job: Job, kind: type[Job]) -> Job:
    """Return a job as one of another kind."""
    return kind(**{field.name: getattr(job, field.name) for field in fields(Job)})


def same_columns(one: Job, other: Job) -> bool:
    """Whether two jobs gather the same columns."""
    pairs = zip(one.pattern.groups, other.pattern.groups, strict=True)
    return all(np.array_equal(ours.columns, theirs.columns) for ours, theirs in pairs)
