"""Made-up results, for tests of what is computed and printed from them."""

from __future__ import annotations

from benchmarks.result import start_run
from benchmarks.ticket.latency import SCHEDULE, Latency
from benchmarks.ticket.outcome import Outcome
from benchmarks.ticket.preset import PRESETS
from benchmarks.ticket.rows import Row


def make_row(arm: str, number: int, seed: int, accuracy: float, density: float = 0.2) -> Row:
    """Make a row."""
    return Row(seed, arm, number, accuracy, density, density, 0.5 if number else None, 3, 0)


def make_latency(arm: str, number: int, engine: str, median_ms: float, batch: int = 64) -> Latency:
    """Make a latency; a quarter of the multiply-adds is run."""
    return Latency(arm, number, engine, batch, median_ms, 1e-7, 400, 80, 100)


ROWS = (
    make_row("dense", 0, 0, 0.95, 1.0),
    make_row("dense", 0, 1, 0.97, 1.0),
    make_row("vectors-8", 7, 0, 0.96),
    make_row("vectors-8", 7, 1, 0.97),
    make_row("vectors-8-reinit", 7, 0, 0.95),
    make_row("vectors-8-reinit", 7, 1, 0.94),
    make_row("refill", 7, 0, 0.91),
    make_row("refill", 7, 1, 0.90),
)

LATENCIES = (
    make_latency("dense", 0, "fxprune", 4.0),
    make_latency("dense", 0, "eager", 5.0),
    make_latency("dense", 0, "torch.compile", 3.0),
    make_latency("vectors-8", 7, "fxprune", 1.5),
    make_latency("refill", 7, "fxprune", 3.3),
)


def make_outcome(rows: tuple[Row, ...] = ROWS, latencies: tuple[Latency, ...] = LATENCIES) -> Outcome:
    """Make a result."""
    return Outcome(start_run(2, SCHEDULE), PRESETS["default"], 12.5, rows, latencies, 0.02)
