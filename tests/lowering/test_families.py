"""Which families of kernels are worth a measurement beside each other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune import backend
from fxprune.lowering import cases, select
from fxprune.lowering.select import usual_candidates
from fxprune.lowering.trials import find_trials
from fxprune.passes import default_pipeline
from fxprune.prepare import prepare
from tests.compiling import Mask, cells, draw_masks


def count_candidates(mask: Mask) -> dict[str, int]:
    """Count the candidates of each family for a 1x1 convolution of 32 channels."""
    target = backend.prepare_target("cpu", 2)
    model: nn.Module = nn.Sequential(nn.Conv2d(32, 144, 1)).eval()
    x = torch.zeros(1, 32, 28, 28)
    ready = prepare(model, draw_masks(model, mask), None, default_pipeline(target.efficiency, "exact"), (x,), {})
    _, unique = find_trials(cases.find_cases(ready.captured.graph_module)[0])
    (trial,) = unique.values()
    return {family: len(found) for family, found in usual_candidates(trial, target).items()}


def test_single_rows_do_not_keep_a_layer_from_being_tried_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    found = count_candidates(cells(0.3))
    assert found["pixels"] > 0
    assert found["rows"] > 0
    monkeypatch.setattr(select, "_CLOSE_TO_SHORT", select._CLOSE_TO_ROWS)
    assert count_candidates(cells(0.3))["rows"] == 0, "the guard makes no difference"


def test_a_family_far_behind_is_not_measured() -> None:
    assert count_candidates(cells(0.05))["rows"] == 0
