"""Time several callables against each other: interleaved rounds, warm-up inside each round, medians."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Schedule:
    """How long to measure.

    The warm-up at the start of each block is not timed. It refills the caches, wakes the peer's threads, and outlasts
    the spinning threads of the peer before it: OpenMP workers of torch keep a core busy for some milliseconds after
    the last call.

    Attributes:
        rounds: Rounds; each gives one sample of each peer.
        warmup_calls: Least number of untimed calls at the start of a block.
        warmup_seconds: Least time of the untimed calls.
        block_calls: Least number of timed calls in a block.
        block_seconds: Least time of the timed calls.
        seed: Seed of the order of the peers, drawn anew for each round.
    """

    rounds: int = 10
    warmup_calls: int = 1
    warmup_seconds: float = 0.06
    block_calls: int = 2
    block_seconds: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class Timing:
    """What one peer took.

    Attributes:
        samples_ms: One sample a round: the median call of the block, in milliseconds.
        best_ms: The fastest single call.
    """

    samples_ms: tuple[float, ...]
    best_ms: float

    @property
    def median_ms(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.samples_ms)


@dataclass
class _Recorder:
    """Times blocks of calls; collects the samples of one peer."""

    clock: Callable[[], float]
    samples_ms: list[float] = field(default_factory=list)
    best_ms: float = float("inf")

    def run_block(self, call: Callable[[], object], schedule: Schedule) -> None:
        self._repeat(call, schedule.warmup_calls, schedule.warmup_seconds)
        times = self._repeat(call, schedule.block_calls, schedule.block_seconds)
        self.samples_ms.append(1e3 * statistics.median(times))
        self.best_ms = min(self.best_ms, 1e3 * min(times))

    def _repeat(self, call: Callable[[], object], least_calls: int, least_seconds: float) -> list[float]:
        times: list[float] = []
        while len(times) < least_calls or sum(times) < least_seconds:
            start = self.clock()
            call()
            times.append(self.clock() - start)
        return times


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    schedule: Schedule,
    *,
    clock: Callable[[], float] = time.perf_counter,
    on_block: Callable[[str], None] | None = None,
) -> dict[str, Timing]:
    """Time every callable in every round, so that a slow minute of the machine hits all of them alike.

    Args:
        calls: The callables by name.
        schedule: How long to measure.
        clock: A clock in seconds.
        on_block: Called with the name of the peer before each of its blocks.

    Returns:
        One `Timing` for each name, in the order of `calls`.
    """
    recorders = {name: _Recorder(clock) for name in calls}
    shuffle = random.Random(schedule.seed).shuffle
    for _ in range(schedule.rounds):
        order = list(calls)
        shuffle(order)
        for name in order:
            if on_block is not None:
                on_block(name)
            recorders[name].run_block(calls[name], schedule)
    return {name: Timing(tuple(recorder.samples_ms), recorder.best_ms) for name, recorder in recorders.items()}
