"""One seed of a tiny experiment: every arm is trained, and a ticket is kept and loaded again."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn", reason="the extra `bench` is not installed")

from rich.console import Console

from benchmarks.ticket.arms import ALL_ARMS, ARMS
from benchmarks.ticket.network import TicketNet
from benchmarks.ticket.preset import PRESETS, Preset
from benchmarks.ticket.rows import Row, read_rows, train_seed, write_rows
from benchmarks.ticket.seeds import SeedError, count_trainings, run_seeds
from benchmarks.ticket.shipped import find_ticket, load_ticket, write_ticket
from benchmarks.ticket.worker import find_seed_folder
from fxprune.errors import ArtifactError
from fxprune.lottery import Lottery, Recipe, measure_accuracy, measure_density

ROOT = Path(__file__).parents[3]
PRESET = Preset("smoke", "digits", 10, Recipe(2, (1,), 20), rounds=3, at=(3,), seeds=1, widths=(8, 16, 160))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Row]]]:
    folder = tmp_path_factory.mktemp("experiment")
    logging.disable(logging.WARNING)  # the paper's rule says which layers it leaves
    with Lottery(PRESET.make_task(), PRESET.make_plan(0), find_seed_folder(folder, 0)) as lottery:
        rows = train_seed(PRESET, lottery)
    yield folder, rows
    logging.disable(logging.NOTSET)


def test_the_networks_have_a_layer_of_128_and_one_of_256_channels() -> None:
    for preset in PRESETS.values():
        model = TicketNet(preset.widths, 28)
        channels = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
        assert {128, 256} <= set(channels)
        assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_every_arm_is_trained_at_its_rounds(experiment: tuple[Path, list[Row]]) -> None:
    _, rows = experiment
    assert len(rows) == count_trainings(PRESET) == 1 + 3 + len(ARMS)
    assert {row.arm for row in rows if row.number == 3} == set(ALL_ARMS)
    assert {(row.arm, row.number) for row in rows if row.number != 3} == {("dense", 0), ("imp", 1), ("imp", 2)}


def test_arms_are_as_sparse_as_they_should_be(experiment: tuple[Path, list[Row]]) -> None:
    _, rows = experiment
    density = {row.arm: row.density for row in rows if row.number == 3}
    for arm in ("imp", "imp-reinit", "one-shot", "omp", "random"):
        assert density[arm] == pytest.approx(0.512, abs=1e-4)
    assert density["refill-plus"] == pytest.approx(0.512 + 0.2 * 0.488, abs=0.03)
    assert density["vectors-8"] == density["vectors-8-reinit"] == pytest.approx(0.512, abs=0.03)
    refused = {row.arm: row.refused for row in rows if row.number == 3}
    assert refused["paper"] == refused["vectors-16-as-paper"] == 2
    assert refused["vectors-8"] == 0


def test_refill_leaves_dead_rows_and_vectors_hold_more(experiment: tuple[Path, list[Row]]) -> None:
    _, rows = experiment
    found = {row.arm: row for row in rows if row.number == 3}
    assert found["refill"].dead_rows > 10
    assert found["vectors-8"].held is not None
    assert found["refill"].held is not None
    assert found["refill"].held < found["vectors-8"].held < 1


def test_the_default_rule_holds_more_than_the_papers_at_equal_storage(experiment: tuple[Path, list[Row]]) -> None:
    found = {row.arm: row for row in experiment[1] if row.number == 3}
    ours, paper = found["vectors-16-as-paper"], found["paper"]
    assert ours.density == pytest.approx(paper.density, abs=0.005)
    assert ours.held is not None
    assert paper.held is not None
    assert ours.held > paper.held


def test_rows_are_read_as_they_were_written(experiment: tuple[Path, list[Row]], tmp_path: Path) -> None:
    write_rows(tmp_path / "seed-0.json", experiment[1])
    assert read_rows(tmp_path / "seed-0.json") == experiment[1]


def test_a_kept_ticket_is_loaded_with_its_accuracy(
    experiment: tuple[Path, list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rows = experiment
    ticket, dense = find_ticket(PRESET, 0, "vectors-8", 3, folder)
    write_ticket(tmp_path, PRESET, 0, ticket, dense, "vectors-8", 3)
    loaded = load_ticket(tmp_path)
    monkeypatch.setitem(PRESETS, "smoke", PRESET)
    _, tests = PRESETS[loaded.preset].read_images()
    row = next(row for row in rows if row.arm == "vectors-8")
    assert (loaded.accuracy, loaded.density) == (row.accuracy, row.density)
    assert measure_accuracy(loaded.model, tests) == pytest.approx(row.accuracy, abs=2 / 1697)
    assert loaded.masks.keys() == ticket.masks.keys()
    assert measure_density(loaded.masks) == row.density
    assert loaded.title == "regroup 8, round 3"


def test_refuses_a_ticket_without_its_files(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"recipe\.json is missing"):
        load_ticket(tmp_path)


@pytest.mark.slow
def test_a_worker_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.ticket.worker", "smoke", "20", "0", str(tmp_path), "watched"]
    worker = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert worker.stdin is not None
    worker.stdin.close()
    assert worker.wait(timeout=120) == 1
    assert not (tmp_path / "seed-0.json").exists()


@pytest.mark.slow
def test_a_worker_that_is_done_ends_though_its_input_is_open() -> None:
    program = "from benchmarks.ticket.worker import watch_parent; watch_parent()"
    worker = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE)
    assert worker.wait(timeout=120) == 0
    worker.communicate()


def test_a_seed_that_fails_says_why(tmp_path: Path) -> None:
    unknown = Preset("unknown", "digits", 10, Recipe(1, (), 20), rounds=1, at=(), seeds=1)
    with pytest.raises(SeedError, match="KeyError: 'unknown'"):
        run_seeds(unknown, [0], tmp_path, Console(quiet=True))
