"""A layer on torch ends the chain of kernels around it, which counts in the choice although no time shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import nn

from fxprune import backend
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.schedules import Candidate
from fxprune.lowering import cases, measure, select
from fxprune.lowering.choice import Choice
from fxprune.passes import default_pipeline
from fxprune.prepare import prepare
from tests.compiling import draw_masks, force_kernels, row_groups

FAST, SLOW = (1e-4, 1.0), (2e-4, 1e-4)
"""Seconds of a kernel and of torch: a kernel that is better, and one that takes 100 us more."""


def _choose(monkeypatch: pytest.MonkeyPatch, times: Sequence[tuple[float, float]], leave_us: float) -> list[Choice]:
    """Choose what runs three layers in a row of which the times are known."""
    ahead: Iterator[tuple[float, float]] = iter(times)
    force_kernels(monkeypatch, "rows")
    schedule = RowsSchedule(4, 2, (1, 7), "pixels")
    monkeypatch.setattr(select, "rows_candidates", lambda *_, **__: [Candidate(schedule, 1.0)])
    monkeypatch.setattr(measure, "time_calls", lambda *_, **__: list(next(ahead)))
    monkeypatch.setattr(measure, "_PASSES", 1)
    monkeypatch.setattr(select, "_LEAVE_US", leave_us)
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 24, 1), nn.Conv2d(24, 32, 3, padding=1)).eval()
    target, masks = backend.prepare_target("cpu", 2), draw_masks(model, row_groups(8, 0.5))
    ready = prepare(model, masks, None, default_pipeline(target.efficiency, "exact"), (torch.randn(1, 8, 14, 14),), {})
    found, _ = cases.find_cases(ready.captured.graph_module)
    return list(select.select(found, target, measure=True).values())


def test_a_layer_between_kernels_stays_a_kernel_if_torch_gains_little(monkeypatch: pytest.MonkeyPatch) -> None:
    choices = _choose(monkeypatch, [FAST, SLOW, FAST], 150.0)
    assert [choice.family for choice in choices] == ["rows", "rows", "rows"]
    assert "torch between kernels counts 150 us more" in choices[1].reason


def test_it_goes_to_torch_if_that_gains_more_than_leaving_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    choices = _choose(monkeypatch, [FAST, SLOW, FAST], 50.0)
    assert [choice.family for choice in choices] == ["rows", "dense", "rows"]


@pytest.mark.parametrize("times", [[SLOW, FAST, FAST], [FAST, FAST, SLOW], [FAST, SLOW, SLOW]])
def test_a_layer_at_the_end_of_a_chain_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, times: list[tuple[float, float]]
) -> None:
    families = [choice.family for choice in _choose(monkeypatch, times, 150.0)]
    assert families == ["rows" if one is FAST else "dense" for one in times]
