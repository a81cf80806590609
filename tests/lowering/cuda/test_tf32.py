"""Layers of float32 in TF32 on tensor cores: as exact as torch in TF32, only where it was asked for, and saved so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

import fxprune
from fxprune import backend_cuda
from fxprune.codegen.cuda.fragments import round_tf32
from fxprune.codegen.cuda.target import Precision
from fxprune.codegen.cuda.tensor_tile import TensorSchedule
from fxprune.lowering.cuda.precision import float32_precision
from fxprune.lowering.cuda.recipe import read_recipe
from fxprune.lowering.dense import DenseLayer
from tests.compiling import draw_masks, largest_difference, row_groups, run_masked
from tests.lowering.cuda.emulated import tie_to_emulator
from tests.lowering.cuda.test_program import ARCH, MODELS
from tests.lowering.cuda.test_tensor_program import MORE_THAN_DENSE, draw_model
from tests.lowering.cuda.twin import program_of, tie_to_twin
from tests.networks import apply_masks

pytestmark = pytest.mark.usefixtures("no_nvcc")
TF32 = {"precision": "tf32"}
_LAYERS: tuple[Callable[..., torch.Tensor], ...] = (F.linear, F.conv1d, F.conv2d, F.conv3d)


class RoundedLayers(TorchFunctionMode):
    """Torch's layers as tensor cores compute them in TF32: inputs and weights rounded, sums in float32."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        """Round what a layer multiplies."""
        if func in _LAYERS:
            multiplied = [torch.from_numpy(round_tf32(tensor.detach().numpy())) for tensor in args[:2]]
            args = (*multiplied, *args[2:])
        return func(*args, **(kwargs or {}))


_QUICK = ("chain, batch 4", "residual, batch 8", "tokens")


@pytest.mark.usefixtures("all_kernels", "only_tensor_cores")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in _QUICK)) for name in MODELS]
)
def test_a_program_is_as_exact_as_dense_torch_in_tf32(tmp_path: Path, name: str) -> None:
    model, masks, x = draw_model(name, torch.float32)
    compiled = fxprune.compile(model, masks, ARCH, example_inputs=x, options=TF32)
    schedules = [step.kernel.schedule for step in program_of(compiled).parts.steps]
    assert schedules
    assert all(isinstance(schedule, TensorSchedule) and schedule.cell_bytes == 4 for schedule in schedules)
    tie_to_emulator(compiled, tmp_path)
    for value in (x, x + 1):
        wanted = run_masked(model, masks, value)
        with torch.no_grad(), RoundedLayers():
            dense = apply_masks(model, masks)(value)
        assert largest_difference(compiled(value), wanted) <= MORE_THAN_DENSE * largest_difference(dense, wanted)


def _wide(height: int, density: float) -> tuple[nn.Module, dict[str, torch.Tensor], torch.Tensor]:
    model = nn.Sequential(*(nn.Conv2d(512, 512, 3, padding=1) for _ in range(2))).eval()
    return model, draw_masks(model, row_groups(height, density)), torch.randn(64, 512, 14, 14)


def test_the_cost_model_takes_tensor_cores_only_where_tf32_was_asked_for() -> None:
    model, masks, x = _wide(128, 0.1)
    strict, rounded = (fxprune.compile(model, masks, ARCH, example_inputs=x, options=o).report for o in ({}, TF32))
    assert [layer.kernel.split()[0] for layer in strict.layers] == ["columns", "columns"]
    assert "dense in strict float32" in strict.layers[0].reason
    assert [layer.kernel.split()[:2] for layer in rounded.layers] == [["tensor", "tf32"]] * 2
    assert "dense in tf32" in rounded.layers[0].reason
    assert "chosen by the cost model for H200 on tensor cores in TF32" in rounded.whole_model
    assert "float32 as tf32" in rounded.target
    assert "tf32" not in strict.target


def test_what_gains_on_strict_float32_may_stay_dense_in_tf32() -> None:
    """Dense TF32 is seven times as fast; low groups do not feed tensor cores."""
    model, masks, x = _wide(32, 0.4)
    strict, rounded = (fxprune.compile(model, masks, ARCH, example_inputs=x, options=o).report for o in ({}, TF32))
    assert {layer.kernel.split()[0] for layer in strict.layers} == {"columns"}
    assert {layer.kernel for layer in rounded.layers} == {"dense: torch"}


def _settings() -> list[str]:
    backends: Any = torch.backends
    return [place.fp32_precision for place in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)]


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_dense_layers_of_a_program_are_in_its_precision(monkeypatch: pytest.MonkeyPatch, precision: Precision) -> None:
    """Cudnn's convolutions are in TF32 unless they are told otherwise."""
    seen: list[list[str]] = []
    forward = DenseLayer.forward

    def look(layer: DenseLayer, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        seen.append(_settings())
        return forward(layer, x, residual)

    monkeypatch.setattr(DenseLayer, "forward", look)
    model, x = nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 6, 6)
    compiled = fxprune.compile(model, None, ARCH, example_inputs=x, options={"precision": precision})
    tie_to_twin(compiled)
    before = _settings()
    compiled(x)
    assert seen == [[precision] * 3]
    assert _settings() == before


def test_the_precision_is_as_before_after_an_error() -> None:
    before = _settings()

    def fail() -> None:
        with float32_precision("ieee"):
            assert _settings() == ["ieee"] * 3
            raise ValueError("in between")

    with pytest.raises(ValueError, match="in between"):
        fail()
    assert _settings() == before


def test_a_program_is_made_again_in_its_precision(tmp_path: Path) -> None:
    model, masks, x = _wide(128, 0.1)
    compiled = fxprune.compile(model, masks, ARCH, example_inputs=x[:4], options=TF32)
    recipe = program_of(compiled).recipe
    assert read_recipe(recipe)[0].precision == "tf32"
    with pytest.raises(ValueError, match="'fp8' is no precision of this version"):
        read_recipe({**recipe, "precision": "fp8"})
    compiled.save(tmp_path / "model.fxp")
    again = program_of(fxprune.load(tmp_path / "model.fxp"))
    assert again.parts.target.precision == "tf32"
    assert [step.kernel.schedule for step in again.parts.steps] == [
        step.kernel.schedule for step in program_of(compiled).parts.steps
    ]
    assert backend_cuda.prepare_target(ARCH, "ieee").precision == "ieee"
