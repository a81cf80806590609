"""The table, the sentences, the file and the plot."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

pytest.importorskip("matplotlib", reason="the extra `bench` is not installed")

from benchmarks.ticket.picture import draw_outcome
from benchmarks.ticket.table import format_claim, format_rules, print_outcome
from tests.benchmarks.ticket.made_up import ROWS, make_outcome, make_row


def test_savings_are_those_over_the_fastest_dense_engine() -> None:
    outcome = make_outcome()
    assert outcome.find_saving("vectors-8", 7, 64) == pytest.approx(0.5)
    assert outcome.find_saving("refill", 7, 64) == pytest.approx(-0.1)
    assert outcome.find_saving("imp", 7, 64) is None


def test_the_table_has_a_line_for_each_arm() -> None:
    text = io.StringIO()
    print_outcome(Console(file=text, width=132), make_outcome())
    lines = {line.split("  ")[0].strip(): " ".join(line.split()) for line in text.getvalue().splitlines()}
    assert lines["7 regroup 8"].endswith("0.200 96.50 ± 0.71 +0.50 ± 0.50 yes 50 25 1.500 +50")
    assert lines["7 refill"].endswith("0.200 90.50 ± 0.71 -5.50 ± 1.50 no 50 25 3.300 -10")
    assert lines["7 regroup 8, random weights"].endswith("1.500 +50")
    assert "Dense at batch 64: fxprune 4.000 ms, eager 5.000 ms, torch.compile 3.000 ms." in text.getvalue()


def test_the_claim_is_named_with_its_saving_or_said_not_to_hold() -> None:
    assert "regroup 8 of round 7 (80 % sparse; time saved +50 % at N=64)" in format_claim(make_outcome())
    worse = tuple(row for row in ROWS if not row.arm.startswith("vectors"))
    assert format_claim(make_outcome(worse)).startswith("The claim does not hold here")


def test_rules_are_compared_at_equal_storage() -> None:
    rules = (make_row("paper", 7, 0, 0.95), make_row("vectors-16-as-paper", 7, 0, 0.96))
    (sentence,) = format_rules(make_outcome((*ROWS, *rules)))
    assert sentence.startswith("Round 7")
    assert sentence.endswith("accuracy +1.00.")
    assert format_rules(make_outcome()) == []


def test_a_busy_machine_is_said() -> None:
    text = io.StringIO()
    print_outcome(Console(file=text, width=132), dataclasses.replace(make_outcome(), other_cores=0.7))
    assert "Not a quiet machine: other processes kept 0.70 cores busy" in text.getvalue()


def test_the_file_has_every_row_and_line(tmp_path: Path) -> None:
    make_outcome().write(tmp_path / "ticket.json")
    data = json.loads((tmp_path / "ticket.json").read_text())
    assert len(data["rows"]) == len(ROWS)
    assert [line["arm"] for line in data["lines"]] == ["dense", "vectors-8", "vectors-8-reinit", "refill"]
    assert data["preset"]["recipe"]["epochs"] == 16
    assert [path.name for path in tmp_path.iterdir()] == ["ticket.json"]


def test_the_plot_is_drawn_and_needs_times(tmp_path: Path) -> None:
    draw_outcome(make_outcome(), tmp_path / "ticket.png")
    assert (tmp_path / "ticket.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_outcome(make_outcome(latencies=()), tmp_path / "none.png")
