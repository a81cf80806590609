"""`kill -9` during a search, twenty times at random: what was reported is kept, and the next search goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KILLS = 20

_TUNE = """
import sys
import fxprune
from fxprune.tuning import plan
from tests.tuning.layers import X, network
plan._BATCH = 1
def show(standing):
    print(standing.done, flush=True)
fxprune.tune(*network(), example_inputs=X, database=sys.argv[1], progress=show)
"""
"""A whole search in a process of its own; it reports how many trials it has recorded."""

_FORKS = """
import functools, os, sys, time
import torch
torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
from pathlib import Path
from fxprune import backend
from fxprune.arguments import Effort
from fxprune.lowering.trials import find_trials
from fxprune.tuning import plan, search
from fxprune.tuning.trial import Outcome
from tests.tuning.layers import find_cases
plan._BATCH, plan.MOST = 1, 500  # more trials than twenty searches get to
target = backend.prepare_target("cpu", 1)
cases = dict([find_cases(target).popitem()])
search.find_candidates = functools.cache(search.find_candidates)
search.find_candidates(*find_trials(cases)[1].values(), target)  # once for all forks
def measure(batch):
    time.sleep(0.01)
    return [Outcome(job.candidate, job.predicted_us, job.predicted_us * 1e-6) for job in batch.jobs]
search.measure_batch = measure
def show(standing):
    os.write(1, b"%d\\n" % standing.done)
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        known = backend.open_records(Path(sys.argv[1]), target, Effort("max", None)).known
        search.Search(cases, target, known, None, show).run(None)
        os._exit(0)
    print("pid", child, flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""
"""Searches that are real but for the measurement, each in a fork of a process that has loaded everything."""


def _trials(path: Path) -> list[tuple[str, str]]:
    """Return layer and candidate of every trial recorded; every line must be a whole one, but for cut ends."""
    found = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["candidate"] != "dense":
            found.append((record["workload"], record["candidate"]))
    return found


def _check_kills(path: Path, reports: Iterator[int]) -> None:
    """Check the database after every kill.

    Args:
        path: Its file.
        reports: How many trials each search reported before it was killed.
    """
    before: list[tuple[str, str]] = []
    for killed, reported in enumerate(reports, 1):
        trials = _trials(path)
        assert trials[: len(before)] == before, f"kill {killed} changed older records"
        assert len(trials) >= len(before) + reported, f"kill {killed} lost a trial that was reported"
        assert len(set(trials)) == len(trials), "a search measured again what had a record"
        before = trials
    assert killed == KILLS
    assert len(before) >= KILLS


def _last_number(lines: list[str]) -> int:
    return max([0, *(int(line) for line in lines if line.endswith("\n") and line.strip().isdigit())])


def _fork_and_kill(path: Path) -> Iterator[int]:
    """Kill searches within a moment of their first trial; yield what each reported."""
    draw, command = random.Random(2), [sys.executable, "-c", _FORKS, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(KILLS):
            process.stdin.write("next\n")
            process.stdin.flush()
            child, lines = 0, [""]
            while not child or _last_number(lines) == 0:
                lines.append(process.stdout.readline())
                assert lines[-1] not in {"", "gone\n"}, "a search ended on its own"
                child = int(lines[-1].split()[1]) if lines[-1].startswith("pid") else child
            time.sleep(draw.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
            while lines[-1] != "gone\n":
                lines.append(process.stdout.readline())
            yield _last_number(lines)
        process.stdin.close()


@pytest.mark.slow
def test_twenty_kills_lose_no_reported_trial(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    _check_kills(path, _fork_and_kill(path))


def _run_and_kill(path: Path) -> Iterator[int]:
    """Kill whole searches within seconds of their first trial; yield what each reported."""
    draw, command = random.Random(1), [sys.executable, "-c", _TUNE, str(path)]
    for _ in range(KILLS):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = [""]
            while _last_number(lines) == 0:
                lines.append(process.stdout.readline())
                assert lines[-1], "a search ended on its own"
            time.sleep(draw.uniform(0, 0.5))
            os.kill(process.pid, signal.SIGKILL)
            yield _last_number([*lines, *process.stdout.readlines()])


@pytest.mark.slow
def test_twenty_kills_of_whole_searches_lose_no_reported_trial(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    _check_kills(path, _run_and_kill(path))
