"""Blocks of neighbouring rows in whole compiled models: more cells, the same numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.row_schedules import rows_candidates
from fxprune.codegen.schedules import Candidate
from tests.compiling import cells, channels, check, draw_masks, force_kernels, row_groups, shuffled
from tests.test_compile import residual

KINDS = {"rows": channels, "groups": shuffled(row_groups(12)), "cells": cells(0.5)}


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_in_order_are_exact(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_ordered(*args: object, **options: object) -> Iterator[Candidate]:
        found = list(rows_candidates(*args, **options))  # type: ignore[arg-type]
        ordered = [one for one in found if isinstance(one.schedule, RowsSchedule) and one.schedule.ordered]
        yield from ordered or found

    force_kernels(monkeypatch, "rows")
    monkeypatch.setattr("fxprune.lowering.select.rows_candidates", only_ordered)
    model: nn.Module = residual().eval()
    masks = draw_masks(model, KINDS[kind])
    compiled = check(model, masks, torch.randn(2, 3, 9, 7))
    ran = [layer for layer in compiled.report.layers if layer.kernel.endswith("in order")]
    assert ran, str(compiled.report)
    assert all(layer.stored_density >= layer.density for layer in ran)
