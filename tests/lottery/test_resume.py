"""A lottery that is killed goes on where it was, and ends with the same bits."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from fxprune.lottery import Lottery
from fxprune.lottery.checkpoint import read_file
from fxprune.lottery.task import Labelled, train_batch
from tests.lottery.tiny import PLAN, make_task, run

ROOT = Path(__file__).parents[2]


def _read_all(folder: Path) -> dict[str, object]:
    return {path.name: read_file(path) for path in sorted(folder.glob("*.pt"))}


def _assert_same(one: object, other: object) -> None:
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert isinstance(other, dict)
        assert one.keys() == other.keys()
        for key in one:
            _assert_same(one[key], other[key])
    else:
        assert one == other


def _start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.lottery.tiny", str(folder)]
    program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    return program


def _kill_and_resume(folder: Path, kills: int, seconds: float) -> int:
    """Kill the program at random moments, then let it end; return how many of the kills hit it alive."""
    draw, hits = random.Random(1), 0
    for _ in range(kills):
        program = _start(folder)
        time.sleep(draw.uniform(0.0, seconds))
        hits += program.poll() is None
        program.kill()
        program.communicate()
    program = _start(folder)
    program.communicate()
    assert program.returncode == 0
    return hits


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("undisturbed")
    program, start = _start(folder), time.perf_counter()
    program.communicate()
    assert program.returncode == 0
    return folder, time.perf_counter() - start


def test_two_runs_give_the_same_bits(undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    run(tmp_path)
    _assert_same(_read_all(tmp_path), _read_all(undisturbed[0]))


def test_a_killed_run_ends_with_the_same_bits(undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    folder, seconds = undisturbed
    assert _kill_and_resume(tmp_path, 2, seconds / 3) > 0
    _assert_same(_read_all(tmp_path), _read_all(folder))


@pytest.mark.slow
def test_ten_kills_change_nothing(undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    folder, seconds = undisturbed
    assert _kill_and_resume(tmp_path, 10, seconds / 4) >= 5
    _assert_same(_read_all(tmp_path), _read_all(folder))


def test_an_interrupted_training_goes_on_after_its_last_epoch(
    undisturbed: tuple[Path, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, steps = make_task(), 0

    def stop(model: nn.Module, batch: Labelled, optimizer: Optimizer) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 13:
            raise KeyboardInterrupt
        return task.step(model, batch, optimizer)

    with Lottery(make_task(), PLAN, tmp_path) as lottery:
        monkeypatch.setattr(lottery, "task", type(task)(**{**vars(task), "step": stop}))
        with pytest.raises(KeyboardInterrupt):
            lottery.find_ticket(0)
        checkpoint = read_file(next(tmp_path.glob("dense.*.running")))
        assert checkpoint is not None
        assert checkpoint["epoch"] == 2
        lottery.find_ticket(0)
    assert steps == 13 + 2 * 5
    _assert_same(read_file(tmp_path / "dense.pt"), read_file(undisturbed[0] / "dense.pt"))
    assert not list(tmp_path.glob("*.running"))


def test_half_written_files_are_not_seen(undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    (tmp_path / "round-01.pt.part").write_bytes(b"half")
    (tmp_path / "dense.pt.part").write_bytes(b"half")
    with Lottery(make_task(), PLAN, tmp_path) as lottery:
        lottery.find_ticket(1)
    _assert_same(read_file(tmp_path / "round-01.pt"), read_file(undisturbed[0] / "round-01.pt"))


class _Warming:
    """A step with a state of its own: the rate grows with the number of steps so far."""

    def __init__(self) -> None:
        self.steps = 0
        self.stop_at = -1

    def __call__(self, model: nn.Module, batch: Labelled, optimizer: Optimizer) -> torch.Tensor:
        self.steps += 1
        if self.steps == self.stop_at:
            raise KeyboardInterrupt
        optimizer.param_groups[0]["lr"] = 0.001 * self.steps
        return train_batch(model, batch, optimizer)

    def state_dict(self) -> dict[str, object]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        self.steps = int(str(state_dict["steps"]))


def test_the_state_of_the_step_is_rewound_and_resumed(tmp_path: Path) -> None:
    once, twice = _Warming(), _Warming()
    with Lottery(dataclasses.replace(make_task(), step=once), PLAN, tmp_path / "once") as lottery:
        lottery.find_ticket(2)
    assert once.steps == 20  # rewound to 5 in each round, then 15 more
    twice.stop_at = 13
    with Lottery(dataclasses.replace(make_task(), step=twice), PLAN, tmp_path / "twice") as lottery:
        with pytest.raises(KeyboardInterrupt):
            lottery.find_ticket(2)
        twice.stop_at = -1
        lottery.find_ticket(2)
    _assert_same(_read_all(tmp_path / "once"), _read_all(tmp_path / "twice"))
