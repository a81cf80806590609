"""The command line, plots and memory figures, without running a model."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the extra `bench` is not installed")

from benchmarks import memory, run
from benchmarks.alone import add_alone_times
from benchmarks.case import Case
from benchmarks.measure import Bench, OnStep
from benchmarks.peers import BuiltPeer
from benchmarks.plot import draw_run
from benchmarks.result import CaseResult, read_run
from tests.benchmarks.test_result import ABSENT, EAGER, OPENVINO, OURS, make_result, make_run


def test_sweeps_span_all_values_and_rows_only_where_they_matter() -> None:
    sweep = "--model resnet18 vgg16_bn --batch 1 16 --structure all --rows 32 8 --sparsity 0.5 0.8"
    cases = run.list_cases(run.build_parser().parse_args(sweep.split()))
    assert len(cases) == 2 * 2 * (2 + 1 + 1 + 1) * 2
    assert {case.rows for case in cases if case.structure != "rowgroup"} == {0}
    assert len(set(cases)) == len(cases)
    spans = [(case.model, case.batch) for case in cases]
    assert spans == sorted(spans, key=spans.index)  # cases that share dense peers lie side by side


def test_a_search_is_fxprunes_alone_and_is_told(tmp_path: Path) -> None:
    options = run.read_options(["--tune", "60", "--database", str(tmp_path / "records.jsonl")])
    told = {peer.name: peer.settings for peer in run.choose_peers(options)}
    plain = {peer.name: peer.settings for peer in run.choose_peers(run.read_options([]))}
    assert told == plain | {"fxprune": "tuned for at most 60 s"}


@pytest.mark.parametrize(
    ("words", "told"),
    [("--database records.jsonl", "needs --tune SECONDS"), ("--tune 60 --alone", "leave out --alone or --tune")],
)
def test_options_that_need_or_exclude_a_search(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run.read_options(words.split())
    assert told in capsys.readouterr().err


def test_main_writes_json_and_png_and_returns_one_without_fxprune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(self: Bench, case: Case, on_step: OnStep) -> tuple[CaseResult, dict[str, BuiltPeer]]:
        for step in range(self.count_steps()):
            on_step(f"step {step}")
        ours = dataclasses.replace(OURS, median_ms=None, reason="CodegenError: no kernel")
        return dataclasses.replace(make_result(EAGER, OPENVINO, ours), case=case), {}

    monkeypatch.setattr(Bench, "measure", measure)
    output = tmp_path / "run.json"
    assert run.main(["--model", "resnet18", "--plot", "--output", str(output)]) == 1
    assert read_run(output).cases[0].case.model == "resnet18"
    assert output.with_suffix(".png").stat().st_size > 1000
    text = capsys.readouterr().out
    assert "Fastest dense fp32 peer: OpenVINO" in text
    assert "no kernel" in text


def test_a_dense_peer_that_is_absent_is_no_failure_but_a_wrong_one_is() -> None:
    assert not run.is_bad(make_result(EAGER, ABSENT, OURS))
    assert run.is_bad(make_result(dataclasses.replace(EAGER, reason="wrong output: ..."), OURS))


def test_a_sweep_is_drawn_as_lines(tmp_path: Path) -> None:
    sweep = [make_result(EAGER, OPENVINO, OURS, sparsity=value) for value in (0.8, 0.5)]
    draw_run(make_run(*sweep), tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_run(make_run(), tmp_path / "none.png")


def test_alone_times_come_from_one_process_a_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    steps: list[str] = []

    def fake_run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        peer = next(p for p in (EAGER, OPENVINO) if p.name == command[command.index("--peers") + 1])
        faster = dataclasses.replace(peer, median_ms=(peer.median_ms or 0.0) / 2)
        make_run(make_result(faster)).write(Path(command[command.index("--output") + 1]))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", fake_run)
    result = add_alone_times(make_result(EAGER, ABSENT, OPENVINO), 2, 3, steps.append)
    assert [peer.alone_ms for peer in result.peers] == [20.0, None, 15.0]
    assert len(commands) == 2
    assert len(steps) == 3
    words = commands[0][3:]
    assert run.list_cases(run.build_parser().parse_args(words)) == [result.case]


def test_memory_fields_are_read_in_megabytes() -> None:
    status = "Name:\tpython\nVmHWM:\t  500000 kB\nVmRSS:\t  250000 kB\n"
    assert memory.read_memory_mb(status, "VmHWM") == pytest.approx(512.0)
    with pytest.raises(LookupError, match="VmSwap"):
        memory.read_memory_mb(status, "VmSwap")


def test_memory_of_a_failed_process_is_reported_and_returns_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake_run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        name = command[command.index("--child") + 1]
        good = json.dumps(dataclasses.asdict(memory.MemoryResult(name, 1.0, 90.0, 100.0, 300.0, 200.0, 210.0)))
        return subprocess.CompletedProcess(command, int(name != "eager"), good, "a warning\nno such thing\n")

    monkeypatch.setattr(subprocess, "run", fake_run)
    assert memory.main(["--model", "resnet18"]) == 1
    assert "fxprune: no such thing" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_of_eager_resnet18_is_plausible() -> None:
    result = memory.measure_in_subprocess("eager", Case("resnet18", 1, "rowgroup", 0.8, 32), 2)
    assert 47.0 < result.idle_mb <= result.run_peak_mb <= 2000.0  # 47 MB of weights


@pytest.mark.slow
@pytest.mark.parametrize("program", ["run", "memory"])
def test_modules_start_as_programs(program: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{program}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--sparsity" in done.stdout


def test_a_cut_case_says_so() -> None:
    (case,) = run.list_cases(run.build_parser().parse_args(["--cut", "--structure", "refill"]))
    assert case.cut
    assert case.label.endswith("dense engines on the cut network")
