"""Processor time of other processes, from the text of /proc/stat and from real work."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from benchmarks import neighbours
from benchmarks.console import print_case
from benchmarks.neighbours import NeighbourWatch, parse_busy_seconds
from tests.benchmarks.test_result import EAGER, make_result


def test_busy_time_leaves_out_idle_and_waiting() -> None:
    stat = "cpu  100 10 50 9000 800 5 5 30 0 0\ncpu0 50 5 25 4500 400 2 3 15 0 0\n"
    assert parse_busy_seconds(stat, 100) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="intr"):
        parse_busy_seconds("intr 1 2\n", 100)


def test_own_work_does_not_count_as_a_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    ticks = os.sysconf("SC_CLK_TCK")
    own, wall = iter([0.0, 1.0]), iter([10.0, 12.0])
    monkeypatch.setattr(neighbours, "_STAT", stat)
    monkeypatch.setattr(os, "times", lambda: SimpleNamespace(user=next(own), system=0.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(wall))
    stat.write_text(f"cpu {ticks} 0 0 0 0 0 0 0\n")
    watch = NeighbourWatch()
    stat.write_text(f"cpu {4 * ticks} 0 0 0 0 0 0 0\n")
    assert watch.read_cores() == pytest.approx(1.0)  # 3 s busy, 1 s of it ours, in 2 s


def test_without_proc_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_STAT", tmp_path / "absent")
    assert NeighbourWatch().read_cores() is None


@pytest.mark.parametrize(("cores", "warns"), [(None, False), (0.02, False), (0.6, True)])
def test_a_busy_machine_is_told(cores: float | None, warns: bool, capsys: pytest.CaptureFixture[str]) -> None:
    print_case(Console(), dataclasses.replace(make_result(EAGER), other_cores=cores))
    assert ("Not a quiet machine" in capsys.readouterr().out) is warns
