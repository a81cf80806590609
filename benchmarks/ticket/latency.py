"""Compile the tickets of one seed and time them beside dense engines, interleaved in one run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import fxprune
from benchmarks.neighbours import NeighbourWatch
from benchmarks.ticket.arms import ARMS
from benchmarks.ticket.preset import Preset
from benchmarks.ticket.rows import DENSE, find_arm_ticket
from benchmarks.ticket.worker import find_seed_folder
from benchmarks.timing import Schedule, time_interleaved
from fxprune.lottery import Lottery

SCHEDULE = Schedule(rounds=7, warmup_seconds=0.02, block_seconds=0.06)
"""Calls take from 50 microseconds to some milliseconds: a block is some tens of calls and more."""

TOLERANCE = 1e-5
"""Largest error of a compiled ticket against the masked network in float64, as a share of the largest output."""


@dataclass(frozen=True)
class Latency:
    """One compiled network at one batch size.

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


@dataclass(frozen=True)
class _Built:
    """A callable that is ready to be timed, and what is known about it."""

    key: tuple[str, int, str]
    call: Callable[[], Tensor]
    error: float | None = None
    macs: tuple[int, int, int] = field(default=(0, 0, 0))


def list_timed(preset: Preset) -> list[tuple[str, int]]:
    """List the arms and rounds that have masks of their own."""
    arms = ["imp", *(arm.name for arm in ARMS if not arm.mask_of)]
    return [(DENSE, 0), *((arm, number) for number in preset.at for arm in arms)]


def time_tickets(
    preset: Preset, seed: int, folder: Path, batches: Sequence[int], threads: int, on_step: Callable[[str], None]
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
    task = preset.make_task()
    with Lottery(task, preset.make_plan(seed), find_seed_folder(folder, seed)) as lottery:
        tickets = {key: find_arm_ticket(lottery, *key) for key in list_timed(preset)}
        models = {
            key: lottery.build(ticket).to(memory_format=torch.contiguous_format) for key, ticket in tickets.items()
        }
    pixels, _ = next(iter(task.loader))
    found: list[Latency] = []
    busy: list[float] = []
    for batch in batches:
        x = pixels.repeat(-(-batch // len(pixels)), 1, 1, 1)[:batch].contiguous()
        built = [*_build_torch(models[DENSE, 0], x)]
        for key, ticket in tickets.items():
            on_step(f"batch {batch}: compiling {key[0]} {key[1] or ''}")
            built.append(_compile(key, models[key], ticket.masks, x, threads))
        on_step(f"batch {batch}: timing")
        watch = NeighbourWatch()
        timings = time_interleaved({str(item.key): item.call for item in built}, SCHEDULE)
        busy += [cores for cores in [watch.read_cores()] if cores is not None]
        macs = next(item.macs for item in built if item.key == (DENSE, 0, "fxprune"))
        for item in built:
            median = timings[str(item.key)].median_ms
            found.append(Latency(*item.key, batch, median, item.error, *(item.macs if item.macs[0] else macs)))
    return found, max(busy, default=None)


def _build_torch(model: nn.Module, x: Tensor) -> list[_Built]:
    import torch._dynamo
    import torch._inductor.config

    torch._inductor.config.freezing = True
    torch._dynamo.reset()
    last = x.to(memory_format=torch.channels_last)
    compiled = torch.compile(model, dynamic=False)
    with torch.no_grad():
        compiled(last)
    return [
        _Built((DENSE, 0, "eager"), lambda: _call(model, last)),
        _Built((DENSE, 0, "torch.compile"), lambda: _call(compiled, last)),
    ]


def _call(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def _compile(key: tuple[str, int], model: nn.Module, masks: Mapping[str, Tensor], x: Tensor, threads: int) -> _Built:
    compiled = fxprune.compile(model, masks or None, example_inputs=(x,), options={"threads": threads})
    error = _find_error(model, compiled, x)
    if not error <= TOLERANCE:
        raise ValueError(f"the compiled ticket {key} has an error of {error:.1e} of the largest output")
    totals = compiled.report.totals()
    macs = (totals.macs_dense, totals.macs_kept, totals.macs_run)
    return _Built((*key, "fxprune"), lambda: _call(compiled, x), error, macs)


def _find_error(model: nn.Module, compiled: nn.Module, x: Tensor) -> float:
    """Compare with the network in float64; its pruned weights are zero already."""
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double())
        return float((compiled(x).double() - expected).abs().max() / expected.abs().max())
