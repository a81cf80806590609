"""What the database knows of the layers of a model: trials as records, and records as candidates again."""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Mapping, Sequence

from fxprune.codegen.host import device_name
from fxprune.codegen.plain import read_schedule, write_schedule, write_target
from fxprune.codegen.schedules import Candidate
from fxprune.codegen.target import CpuTarget
from fxprune.codegen.version import kernel_version
from fxprune.lowering.layer_text import DENSE, describe_case, plain_text
from fxprune.lowering.measure import Trial
from fxprune.records.database import Database
from fxprune.records.record import Context, Record

logger = logging.getLogger(__name__)

_LIBRARIES = ("torch", "apache-tvm", "apache-tvm-ffi")
"""Libraries that build and run what is measured."""


def context_of(target: CpuTarget) -> Context:
    """Return what times on this machine belong to."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return Context(plain_text(write_target(target)), kernel_version(), device_name(), versions)


def workload_text(trial: Trial) -> str:
    """Return what layers of one kind have in common."""
    return plain_text(
        {
            **describe_case(trial.case),
            "last_reader": trial.last_reader,
            "private": trial.private,
            "halos": [trial.x_halo, trial.y_halo],
        }
    )


def candidate_text(candidate: Candidate) -> str:
    """Return a candidate's options."""
    return plain_text({**write_schedule(candidate.schedule), "group_height": candidate.group_height})


def read_candidate(record: Record) -> Candidate | None:
    """Return the candidate of a record; None if this version has no such options."""
    try:
        written = json.loads(record.candidate)
        height = written.pop("group_height")
        schedule = read_schedule(written)
    except (ValueError, KeyError, TypeError, AttributeError):
        logger.warning("a record's candidate %s is not one of this version: skipped", record.candidate)
        return None
    return Candidate(schedule, record.details.get("predicted_us", 0.0), height)


class Known:
    """The records that fit a target on this machine.

    Attributes:
        fills: Whether what is measured is to be written.
        needs_all: Whether a layer is known only once all its usual candidates are.
        context: What the records belong to.
    """

    def __init__(self, database: Database, target: CpuTarget, *, fills: bool, needs_all: bool = False) -> None:
        """Read the database.

        Args:
            database: All records.
            target: The CPU.
            fills: Whether what is measured is to be written.
            needs_all: Whether a layer is known only once all its usual candidates are.
        """
        self.fills, self.needs_all = fills, needs_all
        self._database, self.context = database, context_of(target)
        self._found = database.read(self.context)

    def of(self, workload: str) -> Mapping[str, Record]:
        """Return the records of a workload by candidate."""
        return self._found.get(workload, {})

    def add_trials(self, workload: str, candidates: Sequence[Candidate], times: Sequence[float], dense: float) -> None:
        """Write what was measured of one workload.

        Args:
            workload: The layer.
            candidates: Its kernels.
            times: Seconds of each.
            dense: Seconds of torch's own layer.
        """
        found = [
            Record(self.context, workload, candidate_text(one), seconds, "", {"predicted_us": one.predicted_us})
            for one, seconds in zip(candidates, times, strict=True)
        ]
        self.write([*found, Record(self.context, workload, DENSE, dense)])

    def write(self, records: Sequence[Record]) -> None:
        """Write records, which are then known too."""
        self._database.add(records)
        for record in records:
            self._found.setdefault(record.workload, {})[record.candidate] = record
