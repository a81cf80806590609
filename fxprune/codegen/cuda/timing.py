"""Times by CUDA events: interleaved rounds, several calls a sample, medians."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping

import torch

ROUNDS = 15
"""Samples of each call."""

_SAMPLE_US = 2000.0
"""Least time of one sample, microseconds: an event's own error is about one."""

Clock = Callable[[Callable[[], object], int], float]
"""Runs a call some times and returns the microseconds of all."""


def time_on_gpu(call: Callable[[], object], repeats: int) -> float:
    """Return the microseconds that a stream takes for some calls, one behind the other."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3


def time_interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int = ROUNDS, clock: Clock = time_on_gpu
) -> dict[str, float]:
    """Return the median microseconds of each call; all are timed in every round, in random order.

    Args:
        calls: What to time, by name.
        rounds: Samples of each.
        clock: Times a call.
    """
    repeats = {name: _calibrate(call, clock) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        order = list(calls)
        shuffle(order)
        for name in order:
            clock(calls[name], 1)
            samples[name].append(clock(calls[name], repeats[name]) / repeats[name])
    return {name: statistics.median(values) for name, values in samples.items()}


def _calibrate(call: Callable[[], object], clock: Clock) -> int:
    """Return how often a call runs in a sample; warms it up."""
    clock(call, 3)
    return max(1, round(_SAMPLE_US / max(clock(call, 3) / 3, 0.1)))
