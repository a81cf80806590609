"""The command line: files, JSON, messages and exit codes."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import fxprune
from fxprune.cli import commands
from fxprune.tuning import plan
from fxprune.tuning.process import shared_process
from tests.compiling import TOLERANCE, Masks, draw_masks, largest_difference, row_groups, run_masked

ROOT = Path(__file__).parents[2]
INPUT = "1,32,10,10"


def make() -> nn.Module:
    """Return a network; the command line calls this."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 1)).eval()


class Wrong:
    """No model."""


HERE = f"{__name__}:make"


def masks() -> Masks:
    torch.manual_seed(1)
    return draw_masks(make(), row_groups(16, 0.15))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with masks and a compiled model."""
    path = tmp_path_factory.mktemp("cli")
    save_file({name: mask.to(torch.uint8) for name, mask in masks().items()}, path / "masks.safetensors")
    made = fxprune.compile(make(), masks(), example_inputs=torch.randn(1, 32, 10, 10), options={"measure": False})
    made.save(path / "model.fxp")
    return path


@pytest.fixture(autouse=True, scope="module")
def no_process_is_left() -> Iterator[None]:
    yield
    shared_process().close()


@dataclass(frozen=True)
class Ran:
    """What a command line gave."""

    exit_code: int
    stdout: str
    stderr: str


def run(*arguments: object) -> Ran:
    result = CliRunner().invoke(commands.app, [str(word) for word in arguments])
    return Ran(result.exit_code, result.stdout, result.stderr)


def parsed(result: Ran) -> Any:
    """Return the JSON on standard output, where nothing else may be."""
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_compile_writes_a_file_that_runs(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.fxp"
    words = ("compile", HERE, "--input", INPUT, "--masks", folder / "masks.safetensors", "-o", output, "--target")
    result = run(*words, "torch")
    assert result.exit_code == 0, result.stderr
    assert f"written to {output}" in result.stdout
    x = torch.randn(1, 32, 10, 10)
    assert largest_difference(fxprune.load(output)(x), run_masked(make(), masks(), x)) <= TOLERANCE
    written = parsed(run(*words, "torch", "--json"))
    assert isinstance(written, dict)
    assert len(written["report"]["layers"]) == 2


def test_weights_replace_those_of_the_model(tmp_path: Path) -> None:
    state = {name: tensor + 1 for name, tensor in make().state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    words = ("compile", HERE, "--input", INPUT, "--weights", tmp_path / "weights.safetensors", "--target", "torch")
    assert run(*words, "-o", tmp_path / "out.fxp").exit_code == 0
    model, x = make(), torch.randn(1, 32, 10, 10)
    model.load_state_dict(state)
    with torch.no_grad():
        assert largest_difference(fxprune.load(tmp_path / "out.fxp")(x), model(x)) <= TOLERANCE


def test_an_exported_program(tmp_path: Path) -> None:
    x = torch.randn(1, 32, 10, 10)
    torch.export.save(torch.export.export(make(), (x,)), tmp_path / "model.pt2")
    words = ("compile", tmp_path / "model.pt2", "--input", INPUT, "--target", "torch", "-o", tmp_path / "out.fxp")
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    with torch.no_grad():
        assert largest_difference(fxprune.load(tmp_path / "out.fxp")(x), make()(x)) <= TOLERANCE


def test_report(folder: Path) -> None:
    report = fxprune.load(folder / "model.fxp").report
    assert run("report", folder / "model.fxp").stdout.strip() == str(report).strip()
    assert run("report", folder / "model.fxp", "--markdown").stdout.strip() == report.to_markdown().strip()
    (written,) = parsed(run("report", folder / "model.fxp", "--json"))
    assert written == json.loads(json.dumps(report.to_dict()))


def test_bench(folder: Path) -> None:
    (found,) = parsed(run("bench", folder / "model.fxp", "--rounds", 2, "--json"))
    assert found["inputs"] == [[1, 32, 10, 10]]
    assert found["ms"] > 0
    assert found["speed_up"] == pytest.approx(found["dense_ms"] / found["ms"])
    assert "1x32x10x10: " in run("bench", folder / "model.fxp", "--rounds", 1).stdout


def test_masks(folder: Path) -> None:
    found = parsed(run("masks", folder / "masks.safetensors", "--json"))
    assert found == [
        {"name": name, "shape": list(mask.shape), "cells": mask.numel(), "kept": int(mask.sum())}
        for name, mask in sorted(masks().items())
    ]
    table = run("masks", folder / "masks.safetensors", "--model", HERE)
    assert "32x32x3x3" in table.stdout


@pytest.mark.slow
def test_tune_records(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MOST", 1)
    path = tmp_path / "records.jsonl"
    words = ("tune", HERE, "--input", INPUT, "--masks", folder / "masks.safetensors", "--database", path)
    first = parsed(run(*words, "--workers", 2, "--json"))
    assert isinstance(first, dict)
    assert first["done"] == first["total"] > 0
    assert path.exists()
    again = run(*words)
    assert "0/0 trials" in again.stdout
    assert again.stderr == ""


def test_tune_builds_for_a_gpu_elsewhere(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    monkeypatch.setattr("fxprune.tuning.on_gpu.open_library", lambda scripts, _: built.append(len(scripts)))
    monkeypatch.setenv("FXPRUNE_CACHE_DIR", str(tmp_path))
    target = json.dumps({"kind": "cuda", "arch": "sm_90a"})
    words = ("tune", HERE, "--input", INPUT, "--masks", folder / "masks.safetensors", "--target", target)
    result = run(*words, "--precision", "tf32", "--build-only")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == f"{sum(built)} kernels built"
    assert not list(tmp_path.iterdir())


ERRORS = {
    "no such module": (("compile", "no.module:f", "--input", INPUT, "-o", "x"), "cannot be imported"),
    "no such function": (("compile", f"{__name__}:f", "--input", INPUT, "-o", "x"), "cannot be imported"),
    "no function": (("compile", "torch", "--input", INPUT, "-o", "x"), "write module:function"),
    "no model": (("compile", f"{__name__}:Wrong", "--input", INPUT, "-o", "x"), "returned a Wrong"),
    "wrong sizes": (("compile", HERE, "--input", "1x3", "-o", "x"), "write sizes such as"),
    "wrong type": (("compile", HERE, "--input", "1,3:float", "-o", "x"), "Types are float32"),
    "wrong target": (("compile", HERE, "--input", INPUT, "--target", "gpu", "-o", "x"), "target='gpu'"),
    "wrong effort": (("compile", HERE, "--input", INPUT, "--tune", "fast", "-o", "x"), "tune='fast' is not known"),
    "no file": (("report", "none.fxp"), "'none.fxp' cannot be read"),
    "no folder": (("compile", HERE, "--input", INPUT, "--target", "torch", "-o", "none/x"), "none/x"),
    "no masks": (("masks", "none.pt"), "none.pt"),
    "no target": (("tune", HERE, "--input", INPUT, "--target", "torch"), "has no kernels to tune"),
    "both halves": (("tune", HERE, "--input", INPUT, "--build-only", "--measure-only"), "exclude each other"),
    "wrong precision": (("compile", HERE, "--input", INPUT, "--precision", "tf32", "-o", "x"), "Only GPUs have TF32"),
    "half of a CPU": (("tune", HERE, "--input", INPUT, "--build-only"), "only='build' is for GPUs"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_message_and_code_1(case: str) -> None:
    arguments, message = ERRORS[case]
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_the_command_is_installed_by_its_name() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["fxprune"].partition(":")
    assert getattr(importlib.import_module(module), name) is commands.main
    assert set(scripts) == {"fxprune"}


def test_a_wrong_command_line_is_code_2() -> None:
    assert run("compile", HERE).exit_code == 2
    assert run("fly").exit_code == 2


def test_ctrl_c_is_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fxprune.cli.commands.tune_model", stop)
    result = run("tune", HERE, "--input", INPUT)
    assert (result.exit_code, result.stderr) == (130, "error: stopped; what was recorded is kept.\n")


_COMMAND = [sys.executable, "-c", "from fxprune.cli import main; main()"]


def _trials(path: Path) -> int:
    """Return how many trials of kernels a database holds; every line has to be whole."""
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(json.loads(line)["candidate"] != "dense" for line in lines)


@pytest.mark.slow
def test_a_real_ctrl_c_keeps_what_was_found(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    words = ["tune", HERE, "--input", INPUT, "--masks", str(folder / "masks.safetensors"), "--database", str(path)]
    with subprocess.Popen([*_COMMAND, *words], cwd=ROOT, stdout=PIPE, stderr=PIPE, start_new_session=True) as process:
        while process.poll() is None and not (path.exists() and path.read_text().endswith("\n") and _trials(path)):
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to every process of the command
        stdout, stderr = process.communicate()
    assert (process.returncode, stdout, stderr) == (130, b"", b"error: stopped; what was recorded is kept.\n")
    assert _trials(path) > 0
