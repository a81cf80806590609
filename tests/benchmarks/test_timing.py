"""Interleaving and statistics, on a clock that moves only when a peer runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.timing import Schedule, Timing, time_interleaved


class FakeMachine:
    """A clock, and callables that move it; keeps the order of the calls."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def make(self, name: str, seconds: list[float]) -> Callable[[], None]:
        """Make a callable that takes the given times in turn, then the last one for ever."""
        times = iter(seconds[:-1])

        def call() -> None:
            self.log.append(name)
            self.now += next(times, seconds[-1])

        return call


def test_every_round_holds_one_block_of_each_peer() -> None:
    machine = FakeMachine()
    calls = {name: machine.make(name, [0.01]) for name in "abc"}
    blocks: list[str] = []
    schedule = Schedule(rounds=6, warmup_calls=1, warmup_seconds=0.0, block_calls=2, block_seconds=0.0)
    time_interleaved(calls, schedule, clock=machine.clock, on_block=blocks.append)
    rounds = [blocks[start : start + 3] for start in range(0, 18, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1  # the order changes from round to round
    assert machine.log == [name for name in blocks for _ in range(3)]


def test_warm_up_is_not_timed() -> None:
    machine = FakeMachine()
    schedule = Schedule(rounds=1, warmup_calls=2, warmup_seconds=0.0, block_calls=3, block_seconds=0.0)
    timing = time_interleaved({"a": machine.make("a", [9.0, 9.0, 0.01])}, schedule, clock=machine.clock)["a"]
    assert list(timing.samples_ms) == pytest.approx([10.0])
    assert timing.best_ms == pytest.approx(10.0)


def test_fast_peers_are_called_until_the_block_is_long_enough() -> None:
    machine = FakeMachine()
    schedule = Schedule(rounds=1, warmup_calls=1, warmup_seconds=0.055, block_calls=1, block_seconds=0.195)
    time_interleaved({"a": machine.make("a", [0.01])}, schedule, clock=machine.clock)
    assert len(machine.log) == 6 + 20


def test_a_slow_moment_moves_one_sample_and_not_the_median() -> None:
    machine = FakeMachine()
    schedule = Schedule(rounds=3, warmup_calls=0, warmup_seconds=0.0, block_calls=1, block_seconds=0.0)
    timing = time_interleaved({"a": machine.make("a", [0.02, 5.0, 0.03])}, schedule, clock=machine.clock)["a"]
    assert timing.median_ms == pytest.approx(30.0)
    assert timing.best_ms == pytest.approx(20.0)


def test_the_median_is_over_rounds() -> None:
    assert Timing((1.0, 9.0, 2.0), 0.5).median_ms == 2.0
