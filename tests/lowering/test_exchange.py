"""What a core reads of another one's output counts in the choice of a kernel, although no kernel's time shows it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

import fxprune
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.cpu.winograd_plan import WinogradSchedule
from fxprune.codegen.schedules import Candidate
from fxprune.lowering import measure, select
from tests.compiling import draw_masks, force_kernels, row_groups

SHARING_PIXELS = RowsSchedule(4, 2, (1, 7), "pixels")
SHARING_BLOCKS = RowsSchedule(4, 2, (1, 7), "blocks")


def _choose(monkeypatch: pytest.MonkeyPatch, rows: Sequence[Candidate], fast: Sequence[Candidate] = ()) -> str:
    """Return the kernel of a layer of which the candidates take 100 and 98 us alone, and torch a second."""

    def timed(calls: Sequence[object], *_: object, **__: object) -> list[float]:
        return [*(1e-4, 0.98e-4)[: len(calls) - 1], 1.0]

    force_kernels(monkeypatch, "rows")
    monkeypatch.setattr(select, "rows_candidates", lambda *_, **__: rows)
    monkeypatch.setattr(select, "winograd_candidates", lambda *_: fast)
    monkeypatch.setattr(measure, "time_calls", timed)
    monkeypatch.setattr("fxprune.lowering.whole.time_calls", timed)
    monkeypatch.setattr(measure, "_PASSES", 1)
    model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1)).eval()
    masks, x = draw_masks(model, row_groups(8, 0.2)), torch.randn(1, 16, 14, 14)
    (layer,) = fxprune.compile(model, masks, example_inputs=x, options={"threads": 2}).report.layers
    return layer.kernel


@pytest.mark.parametrize(("rate", "chosen"), [(1e3, "pixels1"), (1e9, "blocks")])
def test_threads_that_share_blocks_are_charged_for_the_exchange(
    rate: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks are 2 us faster; at 1 GB/s the cores exchange 16 channels of 196 pixels for 9 us, at 1 TB/s for none."""
    monkeypatch.setattr(select, "_EXCHANGE_RATE", rate)
    kernel = _choose(monkeypatch, [Candidate(SHARING_PIXELS, 1.0), Candidate(SHARING_BLOCKS, 1.0)])
    assert kernel.split()[-1] == chosen


@pytest.mark.parametrize(("rate", "chosen"), [(1e3, "rows"), (1e9, "winograd")])
def test_winograd_kernels_are_charged_for_their_weights(
    rate: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Winograd is 2 us faster; 16 x 16 channels with 3 x 6 products are 18 kB, 18 us at 1 GB/s and none at 1 TB/s."""
    monkeypatch.setattr("fxprune.codegen.winograd_schedules._MEMORY_RATE", rate)
    winograd = Candidate(WinogradSchedule(4, 2, 4, 1, 2, "pixels"), 1.0)
    kernel = _choose(monkeypatch, [Candidate(SHARING_PIXELS, 1.0)], [winograd])
    assert kernel.split()[0] == chosen
