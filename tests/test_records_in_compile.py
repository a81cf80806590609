"""`compile` and its records: what was measured once is not measured again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune import UnsupportedError
from tests.compiling import TOLERANCE, Masks, draw_masks, kernels, largest_difference, row_groups, run_masked

X = torch.linspace(-2, 2, 64 * 14 * 14).sin().reshape(1, 64, 14, 14)

CLOCKS = (
    "fxprune.lowering.measure.time_calls",
    "fxprune.lowering.copies.time_calls",
    "fxprune.lowering.whole.time_calls",
    "fxprune.lowering.profile.time_calls",
)
"""Every place in which compiling times something."""


def network() -> tuple[nn.Module, Masks]:
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 1)).eval()
    return model, draw_masks(model, row_groups(16, 0.15))


def compile_network(**arguments: object) -> fxprune.CompiledModule:
    torch.manual_seed(0)
    model, masks = network()
    return fxprune.compile(model, masks, example_inputs=X, **arguments)  # type: ignore[arg-type]


def refuse_to_measure(patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a measurement was started")

    for name in CLOCKS:
        patch.setattr(name, refuse)


def test_a_second_compilation_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    first = compile_network(tune="default")
    refuse_to_measure(monkeypatch)
    second = compile_network(tune="default")
    ours, theirs = second.report, first.report
    assert [layer.kernel for layer in ours.layers] == [layer.kernel for layer in theirs.layers]
    assert (ours.whole_model, ours.overhead) == (theirs.whole_model, theirs.overhead)
    assert all(layer.reason.count("recorded") for layer in ours.layers) or not kernels(second)
    torch.manual_seed(0)
    model, masks = network()
    assert largest_difference(second(X), run_masked(model, masks, X)) <= TOLERANCE


def test_without_records_it_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_measure(monkeypatch)
    for tune in (None, "off", "default"):
        with pytest.raises(AssertionError, match="a measurement was started"):
            compile_network(tune=tune)


@pytest.mark.slow
def test_off_reads_records_and_writes_none(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_network()
    assert not cache.exists()
    compile_network(tune="default")
    before = (cache / "records.jsonl").read_bytes()
    refuse_to_measure(monkeypatch)
    compile_network(tune="off")
    assert (cache / "records.jsonl").read_bytes() == before


def test_the_fastest_record_decides(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    compile_network(tune="default", database=path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    layers = [line for line in lines if "shape" in line["workload"]]
    kernels_only = [line for line in layers if line["candidate"] != "dense"]
    assert len({line["workload"] for line in layers}) == 2
    assert len(kernels_only) > 4
    slowest: dict[str, object] = {}
    for line in kernels_only:
        line["seconds"] = 1e-9 if slowest.setdefault(line["workload"], line) is line else 1.0
    path.write_text("".join(json.dumps(line) + "\n" for line in layers))
    chosen = compile_network(database=path)
    times = [layer.measured_us for layer in chosen.report.layers if layer.kernel.split()[0] in ("rows", "pixels")]
    assert chosen.report.whole_model.startswith("dense") or times == pytest.approx([1e-3] * len(times))


@pytest.mark.slow
def test_another_number_of_threads_is_another_target(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_network(tune="default", options={"threads": 1})
    refuse_to_measure(monkeypatch)
    compile_network(tune="default", options={"threads": 1})
    with pytest.raises(AssertionError, match="a measurement was started"):
        compile_network(tune="default", options={"threads": 2})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tune": "fast"}, "tune='fast' is not known; pass one of 'off', 'default', 'max'"),
        ({"tune": 0}, "tune=0 is not known"),
        ({"tune": True}, "tune=True is not known"),
        ({"tune": float("inf")}, "tune=inf is not known"),
        ({"tune": "max", "options": {"measure": False}}, r"measures, and options\['measure'\] is False"),
        ({"tune": "default", "target": "torch"}, "target='torch' has no kernels to tune"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        compile_network(**arguments)
