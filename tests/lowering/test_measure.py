"""How candidates are timed: slow ones less often, and those far behind once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from fxprune.lowering import measure


def test_a_slow_call_has_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls warm up; then as many rounds as the time holds, and at least two."""
    monkeypatch.setattr(measure, "_ROUND_SECONDS", 0.0)
    counts = {}
    for most in (0.0, 1e9):
        monkeypatch.setattr(measure, "_MOST_SECONDS", most)
        ran: list[int] = []
        times = measure.time_calls([lambda ran=ran: ran.append(1)], rounds=7)  # type: ignore[misc]
        assert len(times) == 1
        assert times[0] < 1.0
        counts[most] = len(ran)
    assert counts == {0.0: 2 + 2, 1e9: 2 + 7}


def test_a_trial_finds_its_buffers_written_and_their_values_unchanged() -> None:
    buffer, found = torch.randn(8), []
    call = measure.TrialCall(lambda: found.append(buffer._version), [buffer])
    values = buffer.clone()
    measure.time_calls([call], rounds=3)
    timed = found[2:]  # two calls come before
    assert timed == list(range(found[0] + 1, found[0] + 1 + len(timed)))
    assert len(timed) >= 3
    assert torch.equal(buffer, values)


def test_what_is_far_behind_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others take part in every pass, and the best of all passes counts."""
    seconds = {"fast": iter([1.2, 1.0, 1.1]), "near": iter([1.3, 1.5, 0.9]), "far": iter([2.0])}
    calls: dict[str, Callable[[], object]] = {name: (lambda name=name: name) for name in seconds}  # type: ignore[misc]

    def timed(running: Sequence[Callable[[], object]]) -> list[float]:
        return [next(seconds[str(call())]) for call in running]

    monkeypatch.setattr(measure, "time_calls", timed)
    monkeypatch.setattr(measure, "_PASSES", 3)
    assert measure.time_in_passes([list(calls.values())]) == [[1.0, 0.9, 2.0]]
    assert next(seconds["far"], None) is None
