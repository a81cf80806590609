"""On a ticket found on real images, the default regroup holds more than the paper's rule at equal storage."""

from __future__ import annotations

from pathlib import Path

import pytest

import fxprune
from benchmarks.ticket.preset import PRESETS
from fxprune.lottery import Lottery

ROUNDS = 3


@pytest.mark.slow
def test_default_holds_five_points_more_than_the_papers_rule(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    preset = PRESETS["smoke"]
    with Lottery(preset.make_task(), preset.make_plan(0), tmp_path) as lottery:
        for number in range(1, ROUNDS + 1):
            ticket = lottery.find_ticket(number)
            model = lottery.build(ticket)
            paper = fxprune.regroup(model, ticket.masks, method="paper")
            grouped = [change for change in paper.changes if not change.refused]
            assert grouped, "the paper's rule groups no layer of this network"
            for theirs in grouped:
                mask = {theirs.name: ticket.masks[theirs.name]}
                (ours,) = fxprune.regroup(model, mask, density=theirs.density_after).changes
                assert ours.nnz_after <= theirs.nnz_after
                assert ours.kept_share >= theirs.kept_share + 0.05
