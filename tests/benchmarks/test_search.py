"""The comparison of searches, on a network of three layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import search
from benchmarks.case import Case, Problem
from benchmarks.timing import Schedule
from tests.benchmarks.tiny import build_tiny_problem


@pytest.mark.slow
def test_main_searches_twice_compares_and_builds_with_two_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(_case: Case) -> Problem:
        return build_tiny_problem()

    monkeypatch.setattr(search, "build_problem", build)
    monkeypatch.setattr(search, "Schedule", lambda: Schedule(rounds=2, warmup_seconds=0.0, block_seconds=0.0))
    output = tmp_path / "search.json"
    assert search.main(["--seconds", "0.01", "--batches", "2", "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert found["limited"]["trials"] <= found["limited"]["of"]
    assert found["whole"]["trials"] == found["whole"]["of"] > 0
    assert {name: len(times) for name, times in found["median_ms"].items()} == {"limited": 3, "whole": 3, "untuned": 3}
    assert set(found["build_seconds"]) == {"1", "2"}
    assert min(found["build_seconds"].values()) > 0
