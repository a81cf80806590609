"""What one trial needs, as plain data that can be sent to another process or another machine, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fxprune.annotation import RowGroupPattern
from fxprune.codegen.kernel import LayerKernel, make_kernel
from fxprune.codegen.schedules import Schedule
from fxprune.codegen.target import CpuTarget
from fxprune.codegen.workload import Workload

_SEED = 0


@dataclass(frozen=True, eq=False)
class Job:
    """One candidate for one layer; the columns are those of the layer, the values are random.

    Attributes:
        candidate: Its text in the records.
        predicted_us: Predicted time, microseconds.
        work: The layer.
        schedule: Options of the kernel.
        pattern: Row groups.
        group_order: Whether the output's channels lie in the order of the blocks.
    """

    candidate: str
    predicted_us: float
    work: Workload
    schedule: Schedule
    pattern: RowGroupPattern
    group_order: bool

    def kernel(self) -> LayerKernel:
        """Pack the layer."""
        draw = np.random.default_rng(_SEED)
        weight = draw.standard_normal(self.pattern.shape, dtype=np.float32)
        bias = draw.standard_normal(self.pattern.shape[0], dtype=np.float32)
        return make_kernel(self.work, self.schedule, weight, self.pattern, bias, group_order=self.group_order)


@dataclass(frozen=True, eq=False)
class Batch:
    """Candidates of one layer that are built together.

    Attributes:
        workload: The layer's text in the records.
        jobs: The candidates.
        target: The CPU.
    """

    workload: str
    jobs: tuple[Job, ...]
    target: CpuTarget


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Attributes:
        candidate: The job's candidate.
        predicted_us: Its predicted time, microseconds.
        seconds: Time of one call; None: it cannot run.
        note: Why it cannot run.
    """

    candidate: str
    predicted_us: float
    seconds: float | None
    note: str = ""
