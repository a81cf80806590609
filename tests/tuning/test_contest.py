"""Kernels that were about as fast alone meet inside the model, and what wins there is what `compile` runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import fx

import fxprune
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.schedules import Candidate
from fxprune.codegen.target import parse_target
from fxprune.lowering import known as known_module
from fxprune.lowering.choice import Choice
from fxprune.lowering.known import Known
from fxprune.lowering.profile import time_layers
from fxprune.lowering.program import Program
from fxprune.lowering.trials import find_trials
from fxprune.records.database import Database
from fxprune.tuning import contest
from fxprune.tuning import search as search_module
from fxprune.tuning.contest import Contest, hold_contest
from fxprune.tuning.search import Search
from tests.compiling import TOLERANCE, largest_difference, run_masked
from tests.tuning.layers import X, find_cases, network


def program_of(compiled: fxprune.CompiledModule) -> Program:
    """Return what runs."""
    (found,) = compiled._known.values()
    assert isinstance(found.program, Program)
    return found.program


def schedules(program: Program) -> dict[str, str]:
    """Return the options of every kernel by node name."""
    return {str(name): json.dumps(text, sort_keys=True) for name, text in program.recipe["schedules"].items()}  # type: ignore[attr-defined]


def let_second_win(monkeypatch: pytest.MonkeyPatch, whole: tuple[float, float]) -> list[dict[str, str]]:
    """Let the second program of all that meet the base win every layer, and a call take `whole` (base, best) seconds.

    Returns:
        The schedules of all programs that met the base, in order.
    """
    met: list[dict[str, str]] = []

    def compare(
        _base: Program, rival: Program, names: Mapping[str, str], _inputs: Sequence[object]
    ) -> dict[str, float]:
        met.append(schedules(rival))
        return dict.fromkeys(names.values(), 0.5 if len(met) == 2 else 0.9)

    monkeypatch.setattr(contest, "_compare", compare)
    monkeypatch.setattr(contest, "time_calls", lambda _calls, **_: list(whole))
    return met


def test_what_wins_in_the_model_is_compiled_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "_CLOSE", 1e9)
    find_rivals = contest._find_rivals
    monkeypatch.setattr(contest, "_find_rivals", lambda *of: find_rivals(*of)[:2])
    met = let_second_win(monkeypatch, (2.0, 1.0))
    target, path = parse_target("cpu", torch.get_num_threads()), tmp_path / "records.jsonl"
    cases = find_cases(target)
    gm = next(iter(cases)).graph.owning_module
    assert isinstance(gm, fx.GraphModule)
    model = Contest(gm, cases, [X], None)
    hold_contest(model, target, Known(Database(path), target, fills=True), None)
    assert len(met) >= 2
    compiled = fxprune.compile(*network(), example_inputs=X, database=path)
    if compiled.report.whole_model.startswith("dense"):
        pytest.skip("as a whole the model was faster dense, on a machine as busy as this one")
    assert schedules(program_of(compiled)) == met[1] != met[0]
    assert all("recorded" in layer.reason for layer in compiled.report.layers)
    network_, masks = network()
    assert largest_difference(compiled(X), run_masked(network_, masks, X)) <= TOLERANCE
    count = len(met)
    hold_contest(model, target, Known(Database(path), target, fills=True), None)
    assert len(met) == count, "the same rivals met again"


@pytest.mark.parametrize("is_cut", [True, False])
def test_a_contest_that_was_cut_short_is_gone_on_with(
    is_cut: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is not up when it begins, and up or not when it ends."""
    clock, target = iter([False, is_cut]), parse_target("cpu", 1)
    cases = find_cases(target)
    monkeypatch.setattr(contest, "_is_over", lambda _deadline: next(clock))
    monkeypatch.setattr(contest, "_compete", lambda *_: ({}, 1.0))
    monkeypatch.setattr(contest, "select", lambda *_, **__: dict.fromkeys(cases, Choice(None, "")))
    known = Known(Database(tmp_path / "records.jsonl"), target, fills=True)
    gm = next(iter(cases)).graph.owning_module
    assert isinstance(gm, fx.GraphModule)
    hold_contest(Contest(gm, cases, [X], None), target, known, 1.0)
    kinds, unique = find_trials(cases)
    all_that_met = contest._digest([known.timed(kind) for kind in unique])
    assert known.met(known_module.model_text(kinds), all_that_met) != is_cut


@pytest.mark.parametrize(("seconds", "kept"), [(1.0, True), (2.0, False), (2.5, False)])
def test_winners_that_do_not_make_the_model_faster_are_not_kept(
    seconds: float, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival = Candidate(RowsSchedule(4, 2, (1, 4), "pixels"), 1.0)
    monkeypatch.setattr(contest, "_compare", lambda *_: {"a kind": 0.9, "another": 0.99})
    monkeypatch.setattr(contest, "time_calls", lambda _calls, **_: [2.0, seconds])
    rivals = {"a kind": [rival], "another": [rival]}
    found, gain = contest._compete(lambda _picked: None, rivals, {}, [X], None)  # type: ignore[arg-type,return-value]
    assert (found, gain) == (({"a kind": rival}, 2.0) if kept else ({}, 1.0))


def test_when_the_time_is_up_nobody_meets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "_compare", lambda *_: pytest.fail("a comparison began"))
    monkeypatch.setattr(search_module, "measure_batch", lambda _batch: pytest.fail("a trial began"))
    path = tmp_path / "records.jsonl"
    fxprune.tune(*network(), example_inputs=X, seconds=1e-9, database=path)
    assert "winners in" not in path.read_text()


def test_every_layer_is_timed_inside_the_model() -> None:
    compiled = fxprune.compile(*network(), example_inputs=X, options={"measure": False})
    program = program_of(compiled)
    assert len(program.kernels) == 2
    times = time_layers(program, [X])
    assert set(times) == set(schedules(program))
    assert all(0 < seconds < 1 for seconds in times.values())


def test_a_comparison_sums_the_layers_of_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"base": {"a": 2.0, "b": 4.0, "c": 1.0}, "rival": {"a": 1.0, "b": 4.0, "c": 3.0}}
    monkeypatch.setattr(contest, "time_layers", lambda program, _inputs: times[program])
    kinds = {"a": "twice", "b": "twice", "c": "once"}
    shares = contest._compare("base", "rival", kinds, [X])  # type: ignore[arg-type]
    assert shares == pytest.approx({"twice": 5 / 6, "once": 3.0})


def test_rivals_are_of_one_family_close_and_others() -> None:
    near, far, chosen = (RowsSchedule(4, vectors, (1, 4), "pixels") for vectors in (1, 2, 4))
    timed = [(Candidate(chosen, 0.0), 1.0), (Candidate(far, 0.0), 1.5), (Candidate(near, 0.0), 1.1)]
    assert [one.schedule for one in contest._find_rivals(Choice(chosen, ""), timed)] == [near]
    assert [one.schedule for one in contest._find_rivals(Choice(near, ""), timed)] == [chosen]
    assert contest._find_rivals(Choice(None, ""), timed) == []


def test_times_of_a_final_run_are_compared_with_no_others(tmp_path: Path) -> None:
    """A single time that was lucky does not beat those that were taken in turns."""
    known = Known(Database(tmp_path / "records.jsonl"), parse_target("cpu", 1), fills=True)
    lucky, *finalists = (Candidate(RowsSchedule(4, vectors, (1, 4), "pixels"), 1.0) for vectors in (1, 2, 4))
    known.add_trials("layer", [lucky, *finalists], [1.0, 2.0, 3.0], 9.0)
    assert {seconds for _, seconds in known.timed("layer")} == {1.0, 2.0, 3.0}
    known.add_trials("layer", finalists, [2.5, 2.4], 9.0, final=True)
    assert sorted(seconds for _, seconds in known.timed("layer")) == [2.4, 2.5]


def test_later_winners_join_those_of_before(tmp_path: Path) -> None:
    known = Known(Database(tmp_path / "records.jsonl"), parse_target("cpu", 1), fills=True)
    one, other = (Candidate(RowsSchedule(4, vectors, (1, 4), "pixels"), 1.0) for vectors in (1, 2))
    text = known_module.candidate_text
    known.add_winners("model", {0: one, 1: one}, "first", 1.5)
    known.add_winners("model", {1: other}, "second", 1.2)
    assert known.winners("model") == {0: text(one), 1: text(other)}
    known.add_winners("model", {}, "third", 1.0)
    assert known.winners("model") == {0: text(one), 1: text(other)}
    assert known.met("model", "third")
    assert not known.met("model", "fourth")
    assert known.winners("another model") == {}


def test_timing_layers_leaves_the_program_as_it_was() -> None:
    compiled = fxprune.compile(*network(), example_inputs=X, options={"measure": False})
    program = program_of(compiled)
    before = compiled(X)
    time_layers(program, [X])
    assert torch.equal(compiled(X), before)


def test_every_family_has_finalists(tmp_path: Path) -> None:
    """Which order of activations is better shows in the whole graph only, so none may fall out layer by layer."""
    target, path = parse_target("cpu", 1), tmp_path / "records.jsonl"
    known = Known(Database(path), target, fills=True)
    planes = [Candidate(PixelsSchedule(4, height, 2, "pixels"), 1.0) for height in (1, 2, 4, 6, 8, 12)]
    rows = [Candidate(RowsSchedule(4, vectors, (1, 4), "pixels"), 1.0) for vectors in (1, 2)]
    known.add_trials("layer", [*planes, *rows], [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 3.0, 2.0], 9.0)
    found = Search({}, target, known, None, lambda _standing: None)._finalists("layer")
    assert found == [*planes[:5], rows[1], rows[0]]
