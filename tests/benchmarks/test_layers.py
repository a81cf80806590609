"""The figures of single layers, the sentence on what limits them, and a whole run on a small network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.layers import __main__ as command
from benchmarks.layers import measure
from benchmarks.layers.figures import LayerFigures, LayerTable
from benchmarks.layers.measure import find_convolutions
from benchmarks.masks import make_masks
from benchmarks.models import build_model, make_input
from fxprune import backend
from tests.benchmarks.tiny import build_tiny_model

PEAK = 200e9

FAST = LayerFigures(
    name="a",
    geometry="64-64 3x3, 56x56",
    count=2,
    masked=True,
    kernel="rows 16x2",
    seconds=1e-3,
    dense_seconds=4e-3,
    flops=160_000_000,
    computed_flops=170_000_000,
    size_bytes=1_000_000,
    copy_seconds=1e-4,
    gemm=PEAK,
)
SLOW = replace(FAST, name="b", geometry="64-256 1x1, 56x56", count=1, flops=40_000_000, computed_flops=40_000_000,
               size_bytes=8_000_000, copy_seconds=8e-4, gemm=150e9)  # fmt: skip
DENSE = replace(FAST, name="stem", geometry="3-64 7x7 /2, 112x112", count=1, masked=False, kernel="dense")
TABLE = LayerTable((DENSE, FAST, SLOW), 12e9, 3e-6)


def test_shares_of_peak() -> None:
    assert TABLE.peak == PEAK
    assert [TABLE.share(layer) for layer in TABLE.layers] == pytest.approx([0.8, 0.8, 0.2])
    assert TABLE.weighted_share(TABLE.masked) == pytest.approx((2 * 0.8 + 0.2) / 3)
    assert TABLE.weighted_share(TABLE.layers) == pytest.approx((3 * 0.8 + 0.2) / 4)
    assert [layer.name for layer in TABLE.worst(1)] == ["b"]


def test_a_sentence_says_what_limits_a_layer() -> None:
    assert TABLE.explain(SLOW) == (
        "5.0 FLOP a byte, below the ridge of 20.0 (a copy of as many bytes, 8.00 MB, runs at 10 GB/s). Of its time: "
        "useful multiply-adds at the peak 20%, wasted multiply-adds at the peak 0%, a copy of as many bytes 80%, "
        "starting the threads 0%; they overlap"
    )
    assert TABLE.explain(FAST).startswith("160.0 FLOP a byte, above the ridge of 20.0")
    assert TABLE.explain(FAST).endswith("wasted multiply-adds at the peak 5%, a copy of as many bytes 10%, "
                                        "starting the threads 0%; 5% is none of these")  # fmt: skip


def test_kinds_of_one_geometry_are_joined_by_their_number() -> None:
    joined = FAST.join(replace(FAST, count=1, kernel="rows 8x1", seconds=4e-3, flops=10_000_000, gemm=PEAK / 2))
    assert (joined.count, joined.kernel, joined.gemm) == (3, "rows 16x2; rows 8x1", PEAK)
    assert joined.seconds == pytest.approx(2e-3)
    assert joined.rate * joined.seconds == pytest.approx(110e6)


def test_a_run_writes_both_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measure, "_PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(measure, "_NO_CACHE", 2**20)
    monkeypatch.setattr(command, "build_model", lambda _: build_tiny_model())
    monkeypatch.setattr(command, "make_input", lambda _, batch: torch.randn(batch, 3, 16, 16))
    path = tmp_path / "layers.json"
    assert command.main(["--rounds", "1", "--rows", "4", "--threads", "1", "--output", str(path)]) == 0
    written = json.loads(path.read_text())
    assert [layer["geometry"] for layer in written["layers"]] == [
        "3-8 3x3, 16x16",
        "8-16 3x3, 16x16",
        "16-16 3x3, 14x14",
    ]
    assert [layer["masked"] for layer in written["layers"]] == [False, True, True]
    assert all(layer["seconds"] > 0 < layer["dense_seconds"] for layer in written["layers"])
    assert all(layer["computed_flops"] >= layer["flops"] > 0 for layer in written["layers"])
    text = path.with_suffix(".md").read_text()
    assert f"**Share of peak weighted by time: {written['weighted_share']:.1%}**" in text
    assert "| 8-16 3x3, 16x16 | 3 | 1 | " in text


@pytest.mark.slow
def test_resnet50_has_22_masked_geometries_and_the_stem() -> None:
    model, x = build_model("resnet50"), make_input("resnet50", 1)
    masks = make_masks(model, "rowgroup", 0.8, 0)
    found = find_convolutions(model, masks, x, backend.prepare_target("cpu", 2))
    assert len(found) == 53
    masked = {geometry for geometry, case in found.values() if case.annotation.density < 1}
    assert len(masked) == 22
    assert {geometry for geometry, _ in found.values()} - masked == {"3-64 7x7 /2, 112x112"}
