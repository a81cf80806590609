"""Compile the tickets of one seed and time them beside dense engines, interleaved in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.neighbours import NeighbourWatch
from benchmarks.ticket.arms import IMP
from benchmarks.ticket.engines import Built, build_dense, build_ticket
from benchmarks.ticket.preset import Preset
from benchmarks.ticket.rows import DENSE, find_arm_ticket
from benchmarks.ticket.worker import find_seed_folder
from benchmarks.timing import Schedule, time_interleaved
from fxprune.lottery import Lottery

SCHEDULE = Schedule(rounds=7, warmup_seconds=0.02, block_seconds=0.06)
"""Calls take from 50 microseconds to some milliseconds: a block is some tens of calls and more."""

OnStep = Callable[[str], None]
"""Told what is done next."""

_Key = tuple[str, int, str]
"""Arm, round and engine."""


@dataclass(frozen=True)
class Latency:
    """One network at one batch size.

    Attributes:
        arm: Name of the arm; "dense" for the dense network.
        number: The round.
        engine: What runs it: "fxprune" or, dense only, "eager" or "torch.compile".
        batch: Images a call.
        median_ms: Median over the rounds, milliseconds.
        error: Largest difference to float64 as a share of the largest output; None for torch itself.
        macs_dense: MACs of the dense network, stem and head included.
        macs_kept: MACs of the kept weights.
        macs_run: MACs that are executed.
    """

    arm: str
    number: int
    engine: str
    batch: int
    median_ms: float
    error: float | None
    macs_dense: int
    macs_kept: int
    macs_run: int


def list_timed(preset: Preset) -> list[tuple[str, int]]:
    """List the arms and rounds that have masks of their own, the dense network first."""
    arms = [IMP.name, *(arm.name for arm in preset.arms if not arm.mask_of)]
    return [(DENSE, 0), *((arm, number) for number in preset.at for arm in arms)]


def time_tickets(
    preset: Preset, seed: int, folder: Path, batches: Sequence[int], threads: int, on_step: OnStep
) -> tuple[list[Latency], float | None]:
    """Compile and time the tickets of one seed.

    Args:
        preset: The size of the experiment.
        seed: The seed, trained before.
        folder: Folder of the experiment.
        batches: Batch sizes.
        threads: Threads of every engine.
        on_step: Told what is done next.

    Returns:
        The times, and the cores that other processes kept busy meanwhile.

    Raises:
        ValueError: A compiled ticket gives a wrong output.
    """
    torch.set_num_threads(threads)
    found: list[Latency] = []
    busy: list[float] = []
    for batch in batches:
        built = _build_all(preset, seed, folder, batch, threads, on_step)
        on_step(f"batch {batch}: timing")
        watch = NeighbourWatch()
        found += _time_all(built, batch)
        busy += [cores for cores in [watch.read_cores()] if cores is not None]
    return found, max(busy, default=None)


def _build_all(preset: Preset, seed: int, folder: Path, batch: int, threads: int, on_step: OnStep) -> dict[_Key, Built]:
    """Build every network on the first test images."""
    _, tests = preset.read_images()
    pixels, _ = next(iter(tests))
    x = pixels.repeat(-(-batch // len(pixels)), 1, 1, 1)[:batch].contiguous()
    built: dict[_Key, Built] = {}
    with Lottery(preset.make_task(), preset.make_plan(seed), find_seed_folder(folder, seed)) as lottery:
        for arm, number in list_timed(preset):
            on_step(f"batch {batch}: compiling {arm} {number or ''}")
            ticket = find_arm_ticket(lottery, arm, number)
            model = lottery.build(ticket).to(memory_format=torch.contiguous_format)
            for engine in [
                build_ticket(model, ticket.masks, x, threads),
                *(build_dense(model, x) if not number else []),
            ]:
                built[arm, number, engine.engine] = engine
    return built


def _time_all(built: dict[_Key, Built], batch: int) -> list[Latency]:
    names = {key: " ".join(map(str, key)) for key in built}
    timings = time_interleaved({names[key]: engine for key, engine in built.items()}, SCHEDULE)
    dense = built[DENSE, 0, "fxprune"].macs or (0, 0, 0)
    return [
        Latency(*key, batch, timings[names[key]].median_ms, engine.error, *(engine.macs or dense))
        for key, engine in built.items()
    ]
