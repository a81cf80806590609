"""What the database knows of layers on a GPU: the one of this machine, or one of the architecture compiled for."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence

import torch

from fxprune.codegen.cuda.plain import write_schedule
from fxprune.codegen.cuda.target import CudaTarget
from fxprune.codegen.cuda.tensor_tile import AnySchedule
from fxprune.codegen.version import kernel_version
from fxprune.lowering.choice import Case
from fxprune.lowering.layer_text import DENSE, describe_case, plain_text
from fxprune.records.database import Database
from fxprune.records.record import Context, Record


def context_of(target: CudaTarget, device: str) -> Context:
    """Return what times on a GPU of this machine belong to.

    Args:
        target: What was compiled for.
        device: The GPU's name.
    """
    versions = {"torch": importlib.metadata.version("torch"), "cuda": str(torch.version.cuda)}
    return Context(target.description, kernel_version(), device, versions)


def workload_text(case: Case) -> str:
    """Return what layers of one kind have in common on a GPU."""
    return plain_text({**describe_case(case), "cells": str(case.layer.input.meta["val"].dtype)})


def candidate_text(schedule: AnySchedule) -> str:
    """Return a kernel's options."""
    return plain_text(write_schedule(schedule))


class KnownOnGpu:
    """The records that fit a GPU.

    Attributes:
        device: Name of the GPU that was measured; None: no record fits.
    """

    def __init__(self, database: Database, target: CudaTarget, here: str | None, *, fills: bool = False) -> None:
        """Read the database.

        Args:
            database: All records.
            target: The GPU to compile for.
            here: Name of the GPU of this machine; None = it is elsewhere, and what was measured last on any GPU of its
                architecture, with any torch, counts.
            fills: Whether what is measured is to be written.
        """
        self._database, self._fills = database, fills
        self._context = None if here is None else context_of(target, here)
        context = self._context or database.find_last(target.description, kernel_version())
        self.device = None if context is None else context.device
        self._found = {} if context is None else database.read(context)

    def of(self, workload: str) -> Mapping[str, Record]:
        """Return the records of a workload by candidate."""
        return self._found.get(workload, {})

    def dense_us(self, workload: str) -> float | None:
        """Return the time of torch's own layer, microseconds."""
        found = self.of(workload).get(DENSE)
        return None if found is None or found.seconds is None else found.seconds * 1e6

    def times_us(self, workload: str) -> list[float]:
        """Return the times of all that was measured and can run, torch's own layer too, microseconds."""
        return [record.seconds * 1e6 for record in self.of(workload).values() if record.seconds is not None]

    def best(self, workload: str, schedules: Iterable[AnySchedule]) -> tuple[AnySchedule, float] | None:
        """Return the fastest of some kernels and its time in microseconds; None: none of them was measured."""
        found = self.of(workload)
        timed = [(schedule, found.get(candidate_text(schedule))) for schedule in schedules]
        times = [
            (schedule, record.seconds * 1e6)
            for schedule, record in timed
            if record is not None and record.seconds is not None
        ]
        return min(times, key=lambda pair: pair[1], default=None)

    def add(self, workload: str, times_us: Mapping[str, float | None], notes: Mapping[str, str]) -> None:
        """Take what was measured of one workload on this machine's GPU.

        Args:
            workload: The layer.
            times_us: Microseconds by candidate; None = it cannot run.
            notes: Why not, by candidate.
        """
        assert self._context is not None
        records = [
            Record(self._context, workload, name, None if us is None else us * 1e-6, notes.get(name, ""))
            for name, us in times_us.items()
        ]
        self._write(records)

    def _write(self, records: Sequence[Record]) -> None:
        if self._fills:
            self._database.add(records)
        for record in records:
            self._found.setdefault(record.workload, {})[record.candidate] = record
