"""What a benchmark run leaves behind: plain data, written to JSON and read back for tables and plots."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.case import Case
from benchmarks.timing import Schedule

SCHEMA_VERSION = 1
"""Raised when a field of the JSON file changes its meaning."""

_PACKAGES = ("fxprune", "torch", "torchvision", "onnxruntime", "openvino", "apache-tvm", "apache-tvm-ffi", "numpy")


@dataclass(frozen=True)
class PeerResult:
    """One engine in one case.

    Attributes:
        name: Name of the peer.
        title: Name in tables.
        dense: Whether it computes pruned weights too.
        settings: The settings it ran under.
        reason: Why it did not run, or why its output was refused; empty if all went well.
        build_seconds: Time to build it, the first call included; 0 if it could not be built.
        error: max |y - reference| / max |reference|; None if it did not run.
        median_ms: Median over the rounds, milliseconds; None if it was not timed.
        best_ms: Fastest single call, milliseconds.
        samples_ms: One sample a round, milliseconds.
        alone_ms: Median in a process of its own, if that was asked for.
    """

    name: str
    title: str
    dense: bool
    settings: str
    reason: str = ""
    build_seconds: float = 0.0
    error: float | None = None
    median_ms: float | None = None
    best_ms: float | None = None
    samples_ms: tuple[float, ...] = ()
    alone_ms: float | None = None


@dataclass(frozen=True)
class CaseResult:
    """All engines in one case.

    Attributes:
        case: What was measured.
        density: Kept weights over all weights of the masked layers.
        macs_dense: MACs of one call of the dense model.
        macs_kept: MACs of the kept weights, unmasked layers whole.
        peers: One result for each engine that was asked for.
        other_cores: Cores that other processes kept busy while the engines were timed; None if that is not known.
    """

    case: Case
    density: float
    macs_dense: int
    macs_kept: int
    peers: tuple[PeerResult, ...]
    other_cores: float | None = None

    @property
    def limit(self) -> float:
        """The largest speed-up that MACs allow."""
        return self.macs_dense / max(1, self.macs_kept)

    def find(self, name: str) -> PeerResult | None:
        """Return the peer of that name if it was timed."""
        return next((peer for peer in self.peers if peer.name == name and peer.median_ms is not None), None)

    def fastest_dense(self) -> PeerResult | None:
        """Return the fastest dense peer among those that were timed."""
        timed = [peer for peer in self.peers if peer.dense and peer.median_ms is not None]
        return min(timed, key=lambda peer: peer.median_ms or 0.0, default=None)

    def ratio(self, peer: PeerResult | None, name: str = "fxprune") -> float | None:
        """Return how many times faster the engine `name` is than `peer`; None if one of them has no time."""
        other = self.find(name)
        if peer is None or other is None or peer.median_ms is None or other.median_ms is None:
            return None
        return peer.median_ms / other.median_ms

    def to_dict(self) -> dict[str, object]:
        """Return the fields and the figures derived from them."""
        fastest = self.fastest_dense()
        return dataclasses.asdict(self) | {
            "limit": self.limit,
            "fastest_dense": fastest.name if fastest else None,
            "ratio_to_fastest_dense": self.ratio(fastest),
            "ratio_to_eager": self.ratio(self.find("eager")),
        }


@dataclass(frozen=True)
class BenchmarkRun:
    """A whole run on one machine.

    Attributes:
        date: Start of the run, ISO 8601 in UTC.
        cpu: Model name of the processor.
        cores: Cores that the process may use.
        isa: Vector instruction set that torch found.
        threads: Threads that every engine got.
        versions: Version by package; packages that are not installed are left out.
        schedule: How long was measured.
        cases: The results.
    """

    date: str
    cpu: str
    cores: int
    isa: str
    threads: int
    versions: Mapping[str, str]
    schedule: Schedule
    cases: tuple[CaseResult, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Return everything as JSON-able data."""
        fields = dataclasses.asdict(dataclasses.replace(self, cases=()))
        return {"schema": SCHEMA_VERSION} | fields | {"cases": [case.to_dict() for case in self.cases]}

    def write(self, path: Path) -> None:
        """Write the JSON file, whole or not at all."""
        write_json(path, self.to_dict())


def write_json(path: Path, data: object) -> None:
    """Write a JSON file, whole or not at all; its folder is made.

    Raises:
        ValueError: A number is not finite.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    draft.replace(path)


def start_run(threads: int, schedule: Schedule) -> BenchmarkRun:
    """Describe this machine and begin an empty run."""
    return BenchmarkRun(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        cpu=_find_cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        isa=torch.backends.cpu.get_cpu_capability(),
        threads=threads,
        versions={name: version for name in _PACKAGES if (version := _find_version(name))},
        schedule=schedule,
    )


def read_run(path: Path) -> BenchmarkRun:
    """Read a JSON file that `BenchmarkRun.write` wrote.

    Raises:
        ValueError: The file was written under another schema.
    """
    data = json.loads(path.read_text())
    if data.get("schema") != SCHEMA_VERSION:
        raise ValueError(f"{path.name} has schema {data.get('schema')}; this program reads schema {SCHEMA_VERSION}")
    fields = {field.name: data[field.name] for field in dataclasses.fields(BenchmarkRun)}
    fields["schedule"] = Schedule(**data["schedule"])
    fields["cases"] = tuple(
        CaseResult(
            case=Case(**case["case"]),
            density=case["density"],
            macs_dense=case["macs_dense"],
            macs_kept=case["macs_kept"],
            other_cores=case["other_cores"],
            peers=tuple(PeerResult(**peer | {"samples_ms": tuple(peer["samples_ms"])}) for peer in case["peers"]),
        )
        for case in data["cases"]
    )
    return BenchmarkRun(**fields)


def _find_cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
