"""What the database knows of the layers of a model: trials as records, and records as candidates again."""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Mapping, Sequence

from torch import fx

from fxprune.codegen.host import device_name
from fxprune.codegen.plain import read_schedule, write_schedule, write_target
from fxprune.codegen.schedules import Candidate
from fxprune.codegen.target import CpuTarget
from fxprune.codegen.version import kernel_version
from fxprune.lowering.layer_text import DENSE, describe_case, digest_of, plain_text
from fxprune.lowering.measure import Trial
from fxprune.records.database import Database
from fxprune.records.record import Context, Record

logger = logging.getLogger(__name__)

_FINAL = "final"
"""Detail of a record whose time was taken in turns with the best of its layer."""

_GAIN = "gain"
"""Detail of a record of winners: how many times faster than the fastest kernels of each layer alone the model is."""

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


def model_text(kinds: Mapping[fx.Node, str]) -> str:
    """Return what models whose kernels lie alike have in common: the graph and the kind of every layer.

    Args:
        kinds: The kind of every layer of a model, by node in graph order.
    """
    parts = [str(next(iter(kinds)).graph), *kinds.values()]
    return "winners in " + digest_of(parts)


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

    def timed(self, workload: str, *, final: bool = True) -> list[tuple[Candidate, float]]:
        """Return the kernels of a workload that can run, with their seconds.

        Args:
            workload: The layer.
            final: Only those of its final run, if there was one: other times do not compare with theirs.
        """
        records = [record for name, record in self.of(workload).items() if name != DENSE]
        finals = [record for record in records if final and _FINAL in record.details]
        found = [(read_candidate(record), record.seconds) for record in finals or records]
        return [(candidate, seconds) for candidate, seconds in found if candidate is not None and seconds is not None]

    def winners(self, model: str) -> Mapping[int, str]:
        """Return the candidates that were fastest inside a model, by the number of the kind of layer.

        Args:
            model: The model, by `model_text`.
        """
        best = self._best_of(model)
        return {} if best is None else {int(number): text for number, text in json.loads(best.candidate).items()}

    def met(self, model: str, rivals: str) -> bool:
        """Whether these rivals were compared inside a model.

        Args:
            model: The model.
            rivals: A name of them.
        """
        return any(record.note == rivals for record in self.of(model).values())

    def add_winners(self, model: str, winners: Mapping[int, Candidate], rivals: str, gain: float) -> None:
        """Write which candidates were fastest inside a model; those that won before, and lost to none, stay.

        Args:
            model: The model.
            winners: The candidates that won, by the number of the kind of layer.
            rivals: A name of all that were compared.
            gain: How many times faster the model is with them.
        """
        before = self._best_of(model)
        gain *= 1.0 if before is None else before.details[_GAIN]
        texts = {**self.winners(model), **{number: candidate_text(one) for number, one in winners.items()}}
        found = plain_text({str(number): text for number, text in texts.items()})
        self.write([Record(self.context, model, found, None, rivals, {_GAIN: gain})])

    def _best_of(self, model: str) -> Record | None:
        records = [record for record in self.of(model).values() if _GAIN in record.details]
        return max(records, key=lambda record: record.details[_GAIN], default=None)

    def add_trials(
        self,
        workload: str,
        candidates: Sequence[Candidate],
        times: Sequence[float],
        dense: float,
        *,
        final: bool = False,
    ) -> None:
        """Write what was measured of one workload.

        Args:
            workload: The layer.
            candidates: Its kernels.
            times: Seconds of each.
            dense: Seconds of torch's own layer.
            final: Whether they were the best of a search, whose other times no longer count.
        """
        mark = {_FINAL: 1.0} if final else {}
        found = [
            Record(self.context, workload, candidate_text(one), seconds, "", {"predicted_us": one.predicted_us, **mark})
            for one, seconds in zip(candidates, times, strict=True)
        ]
        self.write([*found, Record(self.context, workload, DENSE, dense)])

    def write(self, records: Sequence[Record]) -> None:
        """Write records, which are then known too."""
        self._database.add(records)
        for record in records:
            self._found.setdefault(record.workload, {})[record.candidate] = record
