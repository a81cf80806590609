"""Peers on a network of three layers: right outputs, and failures that are told and do not end the run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import measure
from benchmarks.case import Case, Problem
from benchmarks.console import format_summary, format_table
from benchmarks.masks import make_masks
from benchmarks.measure import Bench
from benchmarks.peers import PEERS, Forward, Peer, PeerError, Setting, build_peer, tuned
from benchmarks.timing import Schedule
from tests.benchmarks.tiny import CASE, build_tiny_problem

BY_NAME = {peer.name: peer for peer in PEERS}
QUICK = Schedule(rounds=2, warmup_calls=0, warmup_seconds=0.0, block_calls=1, block_seconds=0.0)


def check(peer: Peer, folder: Path) -> None:
    problem = build_tiny_problem()
    built = build_peer(peer, Setting(problem, 2, folder))
    assert problem.find_error(built.forward()) <= peer.tolerance
    assert built.build_seconds > 0.0


def test_eager_gives_the_masked_output(tmp_path: Path) -> None:
    check(BY_NAME["eager"], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compile", "fxprune"])
def test_compiled_peers_give_the_masked_output(name: str, tmp_path: Path) -> None:
    check(BY_NAME[name], tmp_path)


@pytest.mark.slow
def test_a_tuned_peer_records_its_search(tmp_path: Path) -> None:
    check(tuned(BY_NAME["fxprune"], 5.0, tmp_path / "kept.jsonl"), tmp_path)
    assert (tmp_path / "kept.jsonl").stat().st_size > 0


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_onnx_engines_give_the_masked_output(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name, reason="the extra `bench` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `bench` is not installed")
    check(BY_NAME[name], tmp_path)


def test_fxprune_is_last_and_the_only_peer_that_is_not_dense() -> None:
    assert [peer.name for peer in PEERS if not peer.dense] == [PEERS[-1].name] == ["fxprune"]


def test_a_failed_build_says_why_without_naming_folders(tmp_path: Path) -> None:
    def build(setting: Setting) -> Forward:
        raise FileNotFoundError(f"no {setting.folder}/deep/weights.bin here\nsecond line")

    with pytest.raises(PeerError, match=r"^FileNotFoundError: no \.\.\./weights\.bin here$"):
        build_peer(dataclasses.replace(BY_NAME["eager"], build=build), Setting(build_tiny_problem(), 2, tmp_path))


def test_masks_reach_the_reference() -> None:
    problem = build_tiny_problem()
    with torch.no_grad():
        unmasked = problem.model(problem.x)
    assert problem.find_error(unmasked) > 1e-3
    assert problem.find_error(unmasked[:1]) != problem.find_error(unmasked[:1])  # NaN: another shape


@pytest.fixture
def tiny_bench(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """Let `Bench` build the tiny problem for every case; returns the cases it was asked for."""
    asked: list[Case] = []

    def build(case: Case) -> Problem:
        asked.append(case)
        return dataclasses.replace(build_tiny_problem(), case=case)

    monkeypatch.setattr(measure, "build_problem", build)
    return asked


def make_peer(name: str, build_count: list[str], *, dense: bool = True, wrong: bool = False) -> Peer:
    def build(setting: Setting) -> Forward:
        build_count.append(name)
        model: nn.Module = setting.problem.model if wrong else setting.problem.masked
        return lambda: model(setting.problem.x).detach()

    return Peer(name, name, dense, 1e-5, build, "")


@pytest.mark.usefixtures("tiny_bench")
def test_dense_peers_are_built_once_in_a_sweep_and_ours_in_every_case() -> None:
    builds: list[str] = []
    bench = Bench([make_peer("dense", builds), make_peer("ours", builds, dense=False)], 2, QUICK)
    steps: list[str] = []
    for case in (CASE, dataclasses.replace(CASE, sparsity=0.8), dataclasses.replace(CASE, batch=3)):
        result, built = bench.measure(case, steps.append)
        assert set(built) == {"dense", "ours"}
        assert all(len(peer.samples_ms) == 2 for peer in result.peers)
    assert builds == ["dense", "ours", "ours", "dense", "ours"]
    assert len(steps) == 3 * bench.count_steps()


@pytest.mark.usefixtures("tiny_bench")
def test_a_peer_that_fails_or_is_wrong_is_not_timed_and_the_others_go_on() -> None:
    def fail(setting: Setting) -> Forward:
        raise RuntimeError(f"no kernel for batch {setting.problem.case.batch}")

    steps: list[str] = []
    failing = Peer("failing", "Failing", True, 1e-5, fail, "")
    peers = [failing, make_peer("wrong", [], wrong=True), make_peer("good", []), make_peer("fxprune", [], dense=False)]
    result, built = Bench(peers, 2, QUICK).measure(CASE, steps.append)
    assert set(built) == {"good", "fxprune"}
    reasons = {peer.name: peer.reason for peer in result.peers}
    assert reasons["failing"] == "RuntimeError: no kernel for batch 2"
    assert "wrong output" in reasons["wrong"]
    assert "of those that ran (Failing, wrong did not)" in format_summary(result)
    assert format_table(result).row_count == 4


def test_the_cut_network_is_smaller_and_equal() -> None:
    problem = build_tiny_problem()
    masks = make_masks(problem.model, "channel", 0.5, 0)
    cut = dataclasses.replace(problem, masks=masks, case=dataclasses.replace(CASE, structure="channel", cut=True))
    assert cut.find_error(cut.masked(cut.x)) <= 1e-5
    weights = [buffer.numel() for buffer in cut.masked.buffers()] + [one.numel() for one in cut.masked.parameters()]
    assert sum(weights) < sum(one.numel() for one in problem.masked.parameters())
