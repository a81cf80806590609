"""A layer on torch ends the chain of kernels around it, which counts in the choice although no time shows it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import nn

import fxprune
from fxprune import CompiledModule
from fxprune.codegen.cpu.rows import RowsSchedule
from fxprune.codegen.schedules import Candidate
from fxprune.lowering import measure, select
from tests.compiling import draw_masks, force_kernels, kernels, row_groups

FAST, SLOW = (1e-4, 1.0), (2e-4, 1e-4)
"""A kernel that is better than torch, and one that takes 100 us more."""


def _compile(monkeypatch: pytest.MonkeyPatch, times: Sequence[tuple[float, float]], leave_us: float) -> CompiledModule:
    """Compile three layers in a row of which the times are known: (kernel, dense) of each, in seconds."""
    ahead = itertools.chain(times, itertools.repeat(FAST))

    def timed(calls: Sequence[object], *_: object, **__: object) -> list[float]:
        return list(next(ahead)) if len(calls) == 2 else [1.0] * len(calls)

    force_kernels(monkeypatch, "rows")
    schedule = RowsSchedule(4, 2, (1, 7), "pixels")
    monkeypatch.setattr("fxprune.lowering.select.rows_candidates", lambda *_, **__: [Candidate(schedule, 1.0)])
    monkeypatch.setattr(measure, "time_calls", timed)
    monkeypatch.setattr(measure, "_PASSES", 1)
    monkeypatch.setattr(select, "_LEAVE_US", leave_us)
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 24, 1), nn.Conv2d(24, 32, 3, padding=1)).eval()
    masks, x = draw_masks(model, row_groups(8, 0.5)), torch.randn(1, 8, 14, 14)
    return fxprune.compile(model, masks, example_inputs=x, options={"threads": 2})


def test_a_layer_between_kernels_stays_a_kernel_if_torch_gains_little(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = _compile(monkeypatch, [FAST, SLOW, FAST], 150.0)
    assert kernels(compiled) == ["0", "1", "2"]
    assert "torch between kernels counts 150 us more" in compiled.report.layers[1].reason


def test_it_goes_to_torch_if_that_gains_more_than_leaving_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels(_compile(monkeypatch, [FAST, SLOW, FAST], 50.0)) == ["0", "2"]


@pytest.mark.parametrize("times", [[SLOW, FAST, FAST], [FAST, FAST, SLOW], [FAST, SLOW, SLOW]])
def test_a_layer_at_the_end_of_a_chain_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, times: list[tuple[float, float]]
) -> None:
    compiled = _compile(monkeypatch, times, 150.0)
    assert len(kernels(compiled)) == times.count(FAST)
