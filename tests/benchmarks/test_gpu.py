"""The GPU benchmark as far as it goes without a GPU: cases, clock, table, the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.gpu.__main__ import _format, main
from benchmarks.gpu.floors import model_floors_us
from benchmarks.gpu.layers import LayerCase, draw_cases, draw_input
from benchmarks.gpu.measure import ModelCase, Row, layer_scripts
from fxprune.codegen.cuda.build import CudaLibrary
from fxprune.codegen.cuda.target import read_cuda_target
from fxprune.codegen.cuda.tensor_tile import TensorSchedule
from fxprune.codegen.cuda.tile import ColumnsSchedule
from fxprune.codegen.cuda.timing import time_interleaved

H200 = read_cuda_target({"kind": "cuda", "arch": "sm_90a"})


def _case(sparsity: float = 0.8) -> LayerCase:
    return next(draw_cases(4, (sparsity,), (32,)))


def test_one_case_is_one_layer_bit_for_bit() -> None:
    first, second = _case(), _case()
    assert np.array_equal(first.weight(), second.weight())
    assert torch.equal(draw_input(first, torch.device("cpu")), draw_input(second, torch.device("cpu")))
    assert first.pattern().density == pytest.approx(0.2, abs=0.01)
    assert np.array_equal(first.weight() != 0, first.pattern().covered())


def test_cases_are_all_layers_sparsities_and_heights() -> None:
    cases = list(draw_cases(64, (0.5, 0.9), (32, 64)))
    assert len({case.label for case in cases}) == len(cases) == 11 * 4
    assert {case.shape.batch for case in cases} == {64}


def test_the_texts_of_a_case_are_the_same_on_every_machine() -> None:
    """What one machine compiles another one finds in the cache."""
    assert layer_scripts(_case(), H200, 2) == layer_scripts(_case(), H200, 2)
    assert len(layer_scripts(_case(), H200, 3)) == 3


def test_floors_are_below_predictions() -> None:
    case = _case()
    floors = case.floors_us(H200)
    assert floors["bytes"] < floors["all"] <= case.kernels(H200, 1)[0][1]


def test_floors_of_a_model_are_those_of_its_layers() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10))
    kept = torch.zeros(8, 4, 3, 3, dtype=torch.bool)
    kept[:, :2] = True
    x, rate = torch.zeros(64, 4, 8, 8), H200.memory_gbps * 0.85 * 1e3
    cells = (64 * 4 * 64 + 64 * 8 * 16 + 8 * 2 * 9, 64 * 128 + 64 * 10 + 1280)
    flops = (2 * 8 * 2 * 9 * 64 * 16, 2 * 1280 * 64)
    found = model_floors_us(model, {"0.weight": kept}, x, "float32", H200)
    times = [
        (4 * size / rate, work / H200.peak_gflops("float32") / 1e3) for size, work in zip(cells, flops, strict=True)
    ]
    assert found["floor bytes"] == pytest.approx(times[0][0] + times[1][0])
    assert found["floor flops"] == pytest.approx(times[0][1] + times[1][1])
    assert found["floor all"] == pytest.approx(max(times[0]) + max(times[1]))
    assert model_floors_us(model.half(), {}, x.half(), "float16", H200)["floor bytes"] < found["floor bytes"]
    assert next(model.parameters()).device.type == "cpu"


def test_a_model_has_its_floors_without_a_gpu() -> None:
    model, masks, x = ModelCase("resnet18", 64, 0.8, 32, "float32").draw()
    dense, sparse = (model_floors_us(model, given, x, "float32", H200) for given in ({}, masks))
    assert sparse["floor flops"] < 0.3 * dense["floor flops"]
    assert max(sparse["floor bytes"], sparse["floor flops"]) <= sparse["floor all"] <= dense["floor all"]


def test_samples_are_interleaved_and_medians_are_of_one_call() -> None:
    asked: list[str] = []
    times = {"slow": 900.0, "fast": 100.0}

    def clock(call: Callable[[], object], repeats: int) -> float:
        name = str(call())
        asked.append(name)
        return times[name] * repeats

    found = time_interleaved({name: lambda name=name: name for name in times}, rounds=5, clock=clock)  # type: ignore[misc]
    assert found == times
    assert asked[4:].count("slow") == asked[4:].count("fast") == 10
    assert len({tuple(asked[start : start + 4]) for start in range(4, 24, 4)}) == 2, "both orders occur"


def test_numbers_in_16_bits_are_what_the_gpu_holds() -> None:
    case = next(draw_cases(4, (0.8,), (64,), "bfloat16"))
    weight = torch.from_numpy(case.weight())
    assert torch.equal(weight.to(torch.bfloat16).float(), weight)
    assert draw_input(case, torch.device("cpu")).dtype is torch.bfloat16
    (kernel, predicted), *_ = case.kernels(H200, 2)
    assert isinstance(kernel.schedule, TensorSchedule)
    assert case.floors_us(H200)["all"] <= predicted
    assert "m16n8k16.row.col.f32.bf16" in layer_scripts(case, H200, 1)["tile_0"]


def test_a_line_in_16_bits_names_dense_of_16_bits() -> None:
    row = Row("layer", "bfloat16", {"tensor": 50.0, "dense bf16": 60.0}, {})
    assert _format(row).startswith("layer: 1.20x of dense bf16; tensor 50.0 us")


def test_a_line_in_tf32_names_dense_of_tf32() -> None:
    row = Row("layer", "tf32", {"tensor tf32": 50.0, "dense tf32": 60.0}, {})
    assert _format(row).startswith("layer: 1.20x of dense tf32; tensor tf32 50.0 us")


def test_a_case_in_tf32_is_float32_on_tensor_cores() -> None:
    case = next(draw_cases(4, (0.9,), (128,), "tf32"))
    assert draw_input(case, torch.device("cpu")).dtype is torch.float32
    candidates = case.kernels(H200, 20)
    kinds = {type(kernel.schedule) for kernel, _ in candidates}
    assert kinds == {ColumnsSchedule, TensorSchedule}
    assert case.floors_us(H200)["all"] <= candidates[0][1]
    assert ModelCase("resnet18", 1, 0.8, 32, "tf32").options == {"precision": "tf32"}


def test_a_model_for_cifar_has_its_own_line() -> None:
    case = ModelCase("resnet18", 2, 0.8, 32, "bfloat16", 32)
    model, masks, x = case.draw()
    assert case.label == "resnet18, 32x32, bfloat16, batch 2, sparsity 0.8, groups of 32"
    assert (x.shape, x.dtype) == ((2, 3, 32, 32), torch.bfloat16)
    assert set(masks) <= dict(model.named_parameters()).keys()


def test_a_line_names_the_gain_over_dense_of_the_same_type() -> None:
    row = Row("layer", "float32", {"columns": 50.0, "dense fp32": 100.0, "dense tf32": 40.0}, {"floor all": 12.345})
    assert _format(row) == (
        "layer: 2.00x of dense fp32; dense tf32 40.0 us, columns 50.0 us, dense fp32 100.0 us; floor all 12.3"
    )


def test_without_a_gpu_it_is_skipped_with_the_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["run"]) == 0
    assert "skipped: " in capsys.readouterr().out


def test_prepare_compiles_every_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, str]] = []

    def open_library(scripts: Mapping[str, str], arch: str) -> CudaLibrary:
        asked.append((len(scripts), arch))
        return CudaLibrary(arch, (), {})

    monkeypatch.setenv("FXPRUNE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("benchmarks.gpu.__main__.open_library", open_library)
    words = "prepare --arch sm_86 --layers 2 --tiles 3 --sparsities 0.8 --rows 32 --batch 2 --models"
    assert main(words.split()) == 0
    assert asked == [(3, "sm_86")] * 6
    said = capsys.readouterr().out
    assert [said.count(f"3x3 64 56, {kind}") for kind in ("float32", "tf32", "bfloat16")] == [1, 1, 1]
    assert main([*words.split(), "--types", "float16"]) == 0
    assert capsys.readouterr().out.count("float16") == 2
