"""The two rules in pairs: on made-up rows, and on the tickets of one tiny seed."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from rich.console import Console

pytest.importorskip("sklearn", reason="the extra `bench` is not installed")

from benchmarks.ticket import rules
from benchmarks.ticket.arms import ALL_ARMS, ARMS, AS_PAPER, PAPER
from benchmarks.ticket.latency import list_timed
from benchmarks.ticket.preset import PRESETS, RULES, Preset
from benchmarks.ticket.rows import Row, train_seed
from benchmarks.ticket.rules import compare_rules, find_pairs, format_line, format_pooled, main
from benchmarks.ticket.seeds import SeedError, count_trainings
from fxprune.lottery import Lottery, Recipe
from tests.benchmarks.ticket.made_up import ROWS, make_row

PRESET = Preset("tiny", "digits", 10, Recipe(1, (), 50), 2, (1, 2), 1, (8, 16, 160), (PAPER, AS_PAPER))

PAIRED = (
    make_row(PAPER, 4, 0, 0.950),
    make_row(AS_PAPER, 4, 0, 0.952),
    make_row(PAPER, 4, 1, 0.960),
    make_row(AS_PAPER, 4, 1, 0.964),
    make_row(PAPER, 7, 0, 0.940),
    make_row(AS_PAPER, 7, 0, 0.948),
    make_row(PAPER, 7, 1, 0.930),
    make_row(AS_PAPER, 7, 1, 0.928),
)
"""Differences of 0.2, 0.4, 0.8 and -0.2 points."""


@pytest.fixture(scope="module")
def tiny_rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Row]]:
    logging.disable(logging.WARNING)  # the paper's rule says which layers it leaves
    with Lottery(PRESET.make_task(), PRESET.make_plan(0), tmp_path_factory.mktemp("seed")) as lottery:
        yield train_seed(PRESET, lottery)
    logging.disable(logging.NOTSET)


def test_the_comparison_differs_from_the_default_experiment_in_rounds_seeds_and_arms_only() -> None:
    default, deep = PRESETS["default"], PRESETS[RULES]
    changed = {"name": RULES, "rounds": 16, "at": (4, 7, 10, 13, 16), "seeds": 10, "arm_names": (PAPER, AS_PAPER)}
    assert dataclasses.asdict(deep) == dataclasses.asdict(default) | changed
    assert [arm.name for arm in deep.arms] == [PAPER, AS_PAPER]
    assert count_trainings(deep) == 1 + 16 + 5 * 2


def test_a_preset_has_every_arm_unless_it_names_some() -> None:
    assert PRESETS["default"].arms == ARMS
    assert [arm for arm, number in list_timed(PRESET) if number == 1] == ["imp", PAPER, AS_PAPER]


def test_refuses_an_arm_that_is_not_known() -> None:
    with pytest.raises(ValueError, match="no arm 'papers'"):
        dataclasses.replace(PRESET, arm_names=(PAPER, "papers"))


def test_only_the_named_arms_are_trained(tiny_rows: list[Row]) -> None:
    assert len(tiny_rows) == count_trainings(PRESET) == 1 + 2 + 2 * 2
    assert {row.arm for row in tiny_rows if row.arm in ALL_ARMS} == {"imp", PAPER, AS_PAPER}


def test_a_pair_has_one_ticket_and_as_many_stored_weights(tiny_rows: list[Row]) -> None:
    pairs = find_pairs(tiny_rows)
    assert [(pair.ours.seed, pair.ours.number) for pair in pairs] == [(0, 1), (0, 2)]
    for pair in pairs:
        assert pair.paper.imp_density == pair.ours.imp_density
        assert pair.paper.density - 0.005 <= pair.ours.density <= pair.paper.density
        assert pair.ours.held is not None
        assert pair.paper.held is not None
        assert pair.ours.held > pair.paper.held
        assert pair.ours.refused == pair.paper.refused == 2
        assert pair.ours.grouped_held is not None
        assert pair.paper.grouped_held is not None
        assert pair.ours.grouped_held < pair.ours.held  # the layers that stay hold all of theirs
        assert pair.ours.grouped_held > pair.paper.grouped_held


def test_lines_are_means_of_paired_differences() -> None:
    four, seven, pooled = compare_rules(find_pairs((*ROWS, *PAIRED)))
    assert (four.number, seven.number, pooled.number) == (4, 7, None)
    assert (four.pairs, seven.pairs, pooled.pairs) == (2, 2, 4)
    assert four.paper_accuracy == pytest.approx(0.955)
    assert four.accuracy == pytest.approx(0.958)
    assert four.difference == pytest.approx(0.003)
    assert four.error == pytest.approx(0.001)
    assert four.seed_error == pytest.approx(four.error)
    assert pooled.difference == pytest.approx(0.003)
    assert pooled.error == pytest.approx(math.sqrt(52e-6 / 3 / 4))
    assert pooled.seed_error == pytest.approx(0.002)  # one mean a seed: 0.5 and 0.1 points


def test_one_pair_has_no_error() -> None:
    (line, pooled) = compare_rules(find_pairs(PAIRED[:2]))
    assert (line.pairs, line.error, line.seed_error, pooled.error) == (1, 0.0, 0.0, 0.0)


def test_refuses_a_row_without_its_partner() -> None:
    with pytest.raises(ValueError, match="seed 1, round 7 has paper only"):
        find_pairs(PAIRED[:-1])
    with pytest.raises(ValueError, match="no ticket of the two rules"):
        find_pairs(ROWS)


def test_the_table_and_the_sentence_say_points() -> None:
    lines = compare_rules(find_pairs([_hold(row) for row in PAIRED]))
    assert format_line(lines[0]) == [
        *("4", "0.200", "0.2000", "0.2000", "60.0", "68.0", "30.0", "48.0", "95.50", "95.80"),
        *("+0.300 ± 0.100", "2"),
    ]
    assert format_line(lines[-1])[0] == "all"
    assert format_pooled(lines) == (
        "All 4 pairs: accuracy +0.300 ± 0.208 points, ± 0.200 from one mean a seed; |w| +7.0 points "
        "(+6.0 at the worst round), of the grouped layers +17.0 (+16.0)."
    )


def _hold(row: Row) -> Row:
    if row.arm == PAPER:
        return dataclasses.replace(row, held=0.6, grouped_held=0.3)
    more = 0.08 if row.number == 4 else 0.06
    return dataclasses.replace(row, held=0.6 + more, grouped_held=0.4 + more)


def test_the_program_writes_the_rows_and_the_conditions(
    tiny_rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Preset, list[int], Path]] = []

    def run_seeds(preset: Preset, seeds: Sequence[int], folder: Path, _: Console) -> list[Row]:
        asked.append((preset, list(seeds), folder))
        return tiny_rows

    monkeypatch.setattr(rules, "run_seeds", run_seeds)
    output = tmp_path / "results" / "rules.json"
    assert main(["--seeds", "3", "--output", str(output)]) == 0
    assert asked == [(PRESETS[RULES], [0, 1, 2], rules.ROOT / "build" / "ticket" / "rules-16")]
    data = json.loads(output.read_text())
    assert len(data["rows"]) == len(tiny_rows)
    assert [line["number"] for line in data["lines"]] == [1, 2, None]
    assert data["machine"]["threads"] == 1
    assert {"date", "cpu", "isa", "versions"} <= set(data["machine"])
    assert data["preset"]["recipe"]["epochs"] == 16
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("All 2 pairs: accuracy ")


def test_the_program_says_why_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_seeds(*_: object) -> list[Row]:
        raise SeedError("Seed 0 ended with status 9")

    monkeypatch.setattr(rules, "run_seeds", run_seeds)
    assert main(["--output", str(tmp_path / "rules.json")]) == 1
    assert "The comparison stopped: Seed 0 ended with status 9" in capsys.readouterr().out
    assert not (tmp_path / "rules.json").exists()
