"""The acceptance matrix: masks are what their names say, results survive a restart, a wrong cell shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.zoo import __main__ as command
from benchmarks.zoo import cell
from benchmarks.zoo.bench import Bench
from benchmarks.zoo.cell import Key, Outcome, as_json, run_cell
from benchmarks.zoo.kinds import KINDS, NotApplicableError, apply_masks, draw_masks
from benchmarks.zoo.models import TIER_A, TIER_B, Problem, build_problem, find_shapes
from benchmarks.zoo.results import Results, count_exact, format_table
from benchmarks.zoo.session import Row, run_model
from benchmarks.zoo.signal import keep_signal

KEY = Key("yolo_c2f", "filters50", (3, 16, 16), 1)


def problem() -> Problem:
    return build_problem("yolo_c2f", (3, 16, 16), 2)


def test_tier_a_is_90_models_with_two_shapes_where_they_accept_two() -> None:
    assert len(TIER_A) == len(set(TIER_A)) == 90
    single = {name for name in (*TIER_A, *TIER_B) if len(find_shapes(name)) == 1}
    assert single == {"maxvit_t", "s3d"}


def test_nothing_is_left_that_hides_a_forgotten_term() -> None:
    found = problem()
    assert all(bool(parameter.any()) for parameter in found.model.parameters())
    norms = [module for module in found.model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(bool((norm.bias != 0).all() and (norm.weight != 1).all()) for norm in norms)


@pytest.mark.parametrize(("kind", "share"), [("filters30", 0.3), ("filters50", 0.5), ("filters80", 0.8)])
def test_filters_lose_a_share_of_every_layer_but_the_last(kind: str, share: float) -> None:
    masks = draw_masks(kind, problem())
    assert "head.weight" not in masks
    for mask in masks.values():
        rows = mask.flatten(1)
        dead = int((~rows.any(1)).sum())
        assert dead == min(round(share * len(rows)), len(rows) - 1)
        assert bool((rows.all(1) | ~rows.any(1)).all())


def test_an_operand_of_a_concat_dies_whole() -> None:
    masks = draw_masks("branch", build_problem("unet", (3, 16, 16), 1))
    ((name, mask),) = masks.items()
    assert name in {f"up.{level}.up.weight" for level in range(3)}
    assert not bool(mask.any())


def test_filters_of_transposed_convolutions_are_their_outputs() -> None:
    masks = draw_masks("filters50", build_problem("unet", (3, 16, 16), 1))
    mask = masks["up.0.up.weight"]
    assert bool((mask.any((0, 2, 3)) == mask.all(0).all(-1).all(-1)).all())
    assert int(mask.any((0, 2, 3)).sum()) == mask.shape[1] // 2


def test_recurrent_units_lose_all_gates_and_biases() -> None:
    found = build_problem("lstm_language_model", (5,), 1)
    mask = draw_masks("filters50", found)["lstm.weight_ih_l0"].any(1).view(4, -1)
    assert bool((mask == mask[0]).all())
    bias = found.model.get_parameter("lstm.bias_ih_l0").view(4, -1)
    assert bool((bias[:, ~mask[0]] == 0).all())


def test_inputs_layer_branch_and_cells() -> None:
    masks = draw_masks("inputs30", problem())
    assert bool((~masks["first.cv1.0.weight"].any((0, 2, 3))).any())
    (layer,) = draw_masks("layer", problem()).values()
    assert not bool(layer.any())
    branch = draw_masks("branch", problem())
    assert len(branch) == 2
    assert not any(bool(mask.any()) for mask in branch.values())
    cells = torch.cat([mask.flatten() for mask in draw_masks("unstructured95", problem()).values()])
    assert float(cells.double().mean()) == pytest.approx(0.05, abs=0.01)


def test_gamma_is_zero_where_beta_is_not() -> None:
    found = problem()
    assert draw_masks("gamma", found) == {}
    norm = found.model.get_submodule("stem.1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert bool((norm.bias[norm.weight == 0] != 0).all())
    assert 0 < int((norm.weight == 0).sum()) < norm.num_features


@pytest.mark.parametrize("kind", ["gamma", "branch"])
def test_kind_that_a_model_lacks_does_not_apply(kind: str) -> None:
    plain = Problem(nn.Sequential(nn.Conv2d(3, 4, 1)), (), ())
    with pytest.raises(NotApplicableError, match="no "):
        draw_masks(kind, plain)


def test_signal_survives_the_masks() -> None:
    found = problem()
    apply_masks(found.model, draw_masks("filters80", found))
    keep_signal(found.model, found.inputs)
    with torch.no_grad():
        one, other = found.model(*found.inputs), found.model(*(x.flip(-1) for x in found.inputs))
    assert float((one - other).abs().max()) > 1e-2 * float(one.abs().max())


def test_cell_is_exact_and_shrinks() -> None:
    outcome = run_cell(KEY, Bench())
    assert outcome.state == "exact", outcome.reason
    assert outcome.settled
    assert 0 < outcome.macs_after < 0.5 * outcome.macs_before


@pytest.mark.parametrize("name", ["yolo_c2f", pytest.param("llama", marks=pytest.mark.slow)])
def test_cells_that_share_a_graph_come_out_as_alone(name: str) -> None:
    shared, shape = Bench(), find_shapes(name)[0]
    keys = [Key(name, kind, shape, batch) for kind in ("filters50", "gamma") for batch in (1, 3)]
    for key in keys:
        together, alone = run_cell(key, shared), run_cell(key, Bench())
        assert together.state == "exact"
        assert (together.macs_after, together.refusals) == (alone.macs_after, alone.refusals)


@pytest.mark.slow
def test_constants_that_hold_masked_weights_are_captured_anew() -> None:
    bench = Bench()
    for kind in ("filters50", "unstructured95"):
        problem, masks = bench.set_up("swin_v2_t", kind, (3, 64, 64), 1)
        bench.capture("swin_v2_t", problem, masks)
    assert not bench._graphs


def test_wrong_output_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell, "GATE", 0.0)
    assert run_cell(KEY, Bench()).state == "wrong"


def test_crash_of_a_cell_is_its_outcome() -> None:
    outcome = run_cell(Key("yolo_c2f", "filters50", (3, 1), 1), Bench())
    assert outcome.state == "failed"
    assert outcome.reason


def test_worker_answers_and_a_time_out_is_a_failed_cell() -> None:
    (row,) = run_model([Key("bert", "gamma", (4,), 1)], threads=1, seconds=0.01)
    assert (row["state"], row["model"]) == ("failed", "bert")
    rows = list(run_model([Key("bert", "layer", (4,), 1)], threads=1, seconds=300))
    assert [row["state"] for row in rows] == ["exact"]


def test_results_are_read_again_and_failed_cells_run_again(tmp_path: Path) -> None:
    path = tmp_path / "zoo.json"
    results = Results(path, resume=True)
    other = Key("bert", "layer", (9,), 3)
    results.add(as_json(KEY, Outcome("exact", error=1e-15, macs_before=100, macs_after=40)))
    results.add(as_json(other, Outcome("failed", reason="a | b")))
    again = Results(path, resume=True)
    assert (again.has(KEY), again.has(other)) == (True, False)
    again.add(as_json(other, Outcome("not applicable")))
    assert count_exact(again.rows) == (1, 1)
    assert "exact 1 of 1" in path.with_suffix(".md").read_text()
    assert len(json.loads(path.read_text())["cells"]) == 2


def test_table_names_cells_that_are_not_exact() -> None:
    text = format_table([as_json(KEY, Outcome("wrong", error=0.25))])
    assert "exact 0 of 1" in text
    assert "| yolo_c2f | filters50 | 3x16x16 | 1 | wrong | 2.5e-01 |" in text


@pytest.mark.parametrize(("state", "code"), [("exact", 0), ("wrong", 1), ("failed", 1)])
def test_command_fails_if_a_cell_does(
    state: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pretend(keys: list[Key], *, threads: int, seconds: float) -> list[Row]:
        assert (threads, seconds) == (1, 600)
        return [as_json(key, Outcome(state, error=0.0)) for key in keys]

    monkeypatch.setattr(command, "run_model", pretend)
    arguments = ["--models", "bert", "unet", "--kinds", "layer", "gamma", "--output", str(tmp_path / "zoo.json")]
    assert command.main(arguments) == code
    assert f"exact {0 if code else 16} of 16" in capsys.readouterr().out


def test_every_kind_is_drawn_the_same_from_the_same_seed() -> None:
    for kind in KINDS:
        first, again = draw_masks(kind, problem(), 3), draw_masks(kind, problem(), 3)
        assert first.keys() == again.keys()
        assert all(torch.equal(first[name], again[name]) for name in first)
