"""The result of the experiment, as a JSON file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from benchmarks.result import BenchmarkRun, write_json
from benchmarks.ticket.latency import Latency
from benchmarks.ticket.preset import Preset
from benchmarks.ticket.rows import DENSE, Row
from benchmarks.ticket.summary import Line, summarise

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Outcome:
    """Everything that was found.

    Attributes:
        machine: Date, machine and versions.
        preset: The size of the experiment.
        minutes: Wall time of the whole run, in minutes; a resumed run counts from its last start.
        rows: Every trained network.
        latencies: Every timed network; masks and weights are those of the first seed.
        other_cores: Cores that other processes kept busy during the timing; None if that is not known.
    """

    machine: BenchmarkRun
    preset: Preset
    minutes: float
    rows: tuple[Row, ...]
    latencies: tuple[Latency, ...]
    other_cores: float | None

    @property
    def lines(self) -> list[Line]:
        """One line an arm and round."""
        return summarise(self.rows)

    @property
    def batches(self) -> list[int]:
        """Batch sizes that were timed."""
        return sorted({latency.batch for latency in self.latencies})

    def find(self, arm: str, number: int, batch: int, engine: str = "fxprune") -> Latency | None:
        """Return the time of one network; None if it was not timed."""
        wanted = (arm, number, batch, engine)
        return next((la for la in self.latencies if (la.arm, la.number, la.batch, la.engine) == wanted), None)

    def find_fastest_dense(self, batch: int) -> Latency | None:
        """Return the fastest of the dense engines; None if none was timed."""
        dense = [latency for latency in self.latencies if latency.arm == DENSE and latency.batch == batch]
        return min(dense, key=lambda latency: latency.median_ms, default=None)

    def find_saving(self, arm: str, number: int, batch: int) -> float | None:
        """Return the share of the fastest dense engine's time that is saved; negative if the ticket is slower."""
        ticket, dense = self.find(arm, number, batch), self.find_fastest_dense(batch)
        return None if ticket is None or dense is None else 1.0 - ticket.median_ms / dense.median_ms

    def write(self, path: Path) -> None:
        """Write the JSON file, whole or not at all."""
        machine = {key: value for key, value in self.machine.to_dict().items() if key not in ("schema", "cases")}
        data = {
            "schema": SCHEMA_VERSION,
            "machine": machine,
            "preset": dataclasses.asdict(self.preset),
            "minutes": round(self.minutes, 1),
            "other_cores": self.other_cores,
            "lines": [dataclasses.asdict(line) for line in self.lines],
            "latencies": [dataclasses.asdict(latency) for latency in self.latencies],
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }
        write_json(path, data)
