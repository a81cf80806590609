"""The JSON file: what stands in it, what does not, and that it reads back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.case import Case
from benchmarks.result import BenchmarkRun, CaseResult, PeerResult, read_run, start_run
from benchmarks.timing import Schedule

EAGER = PeerResult("eager", "torch eager", True, "channels_last", "", 0.1, 1e-7, 40.0, 38.0, (40.0, 41.0, 39.0))
OPENVINO = PeerResult("openvino", "OpenVINO", True, "f32", "", 1.0, 2e-7, 30.0, 29.0, (30.0,))
ABSENT = PeerResult("onnxruntime", "ONNX Runtime", True, "", "ImportError: not installed")
OURS = PeerResult("fxprune", "fxprune", False, "", "", 9.0, 3e-7, 10.0, 9.5, (10.0,), 9.9)


def make_result(*peers: PeerResult, sparsity: float = 0.8) -> CaseResult:
    return CaseResult(Case("resnet50", 1, "rowgroup", sparsity, 32), 0.2, 4000, 1000, peers, 0.03)


def make_run(*results: CaseResult) -> BenchmarkRun:
    return dataclasses.replace(start_run(2, Schedule()), cases=results)


def test_ratios_are_to_the_fastest_dense_peer_that_ran() -> None:
    result = make_result(EAGER, ABSENT, OPENVINO, OURS)
    assert result.fastest_dense() == OPENVINO
    assert result.ratio(OPENVINO) == pytest.approx(3.0)
    assert result.ratio(result.find("eager")) == pytest.approx(4.0)
    assert result.limit == 4.0


def test_without_fxprune_there_is_no_ratio() -> None:
    result = make_result(EAGER)
    assert result.ratio(EAGER) is None
    assert make_result(ABSENT).fastest_dense() is None


def test_the_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    run = make_run(make_result(EAGER, ABSENT, OPENVINO, OURS), make_result(EAGER, sparsity=0.5))
    path = tmp_path / "deep" / "run.json"
    run.write(path)
    assert read_run(path) == run


def test_the_file_holds_machine_versions_and_ratios_but_no_path(tmp_path: Path) -> None:
    make_run(make_result(EAGER, OPENVINO, OURS)).write(tmp_path / "run.json")
    text = (tmp_path / "run.json").read_text()
    data = json.loads(text)
    assert {"schema", "date", "cpu", "cores", "isa", "threads", "versions", "schedule", "cases"} == set(data)
    assert "torch" in data["versions"]
    assert data["cases"][0]["fastest_dense"] == "openvino"
    assert data["cases"][0]["ratio_to_fastest_dense"] == pytest.approx(3.0)
    assert data["cases"][0]["peers"][2]["samples_ms"] == [10.0]
    assert str(Path.cwd()) not in text
    assert str(Path.home()) + "/" not in text


def test_refuses_another_schema(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema": 0}')
    with pytest.raises(ValueError, match="schema 0"):
        read_run(tmp_path / "run.json")
