"""Means, paired differences and verdicts."""

from __future__ import annotations

import math

import pytest

from benchmarks.ticket.rows import Row
from benchmarks.ticket.summary import Line, find_claims, judge, summarise
from tests.benchmarks.ticket.made_up import ROWS, make_row


def _find(rows: tuple[Row, ...], arm: str) -> Line:
    return next(line for line in summarise(rows) if line.arm == arm)


def test_differences_to_dense_are_paired_by_seed() -> None:
    line = _find(ROWS, "vectors-8")
    assert line.accuracy == pytest.approx(0.965)
    assert line.deviation == pytest.approx(0.01 / math.sqrt(2))
    assert line.difference == pytest.approx(0.005)
    assert line.error == pytest.approx(0.005)
    assert line.control == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("difference", "error", "verdict"),
    [(0.0, 0.0, "wins"), (0.01, 0.1, "wins"), (-0.01, 0.01, "matches"), (-0.02, 0.01, "loses"), (-0.01, 0.0, "loses")],
)
def test_the_verdict_allows_one_standard_error(difference: float, error: float, verdict: str) -> None:
    assert judge(difference, error) == verdict


def test_a_ticket_that_does_not_beat_its_control_does_not_win() -> None:
    rows = (*ROWS[:4], make_row("vectors-8-reinit", 7, 0, 0.96), make_row("vectors-8-reinit", 7, 1, 0.98))
    line = _find(rows, "vectors-8")
    assert (line.verdict, line.winning) == ("wins", False)
    assert _find(ROWS, "vectors-8").winning


def test_one_seed_has_no_deviation() -> None:
    line = _find(ROWS[::2], "refill")
    assert (line.seeds, line.deviation, line.error, line.verdict) == (1, 0.0, 0.0, "loses")


def test_a_claim_needs_a_regrouped_ticket_that_is_sparse_and_matches() -> None:
    dense = _find(ROWS, "dense")
    assert [line.arm for line in find_claims(summarise(ROWS), dense)] == ["vectors-8"]
    dense_masks = tuple(make_row(row.arm, row.number, row.seed, row.accuracy, 0.31) for row in ROWS)
    assert find_claims(summarise(dense_masks), dense) == []


def test_refuses_a_seed_without_its_dense_network() -> None:
    with pytest.raises(ValueError, match="without a dense network"):
        summarise((*ROWS, make_row("refill", 7, 2, 0.9)))
