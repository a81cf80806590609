"""Whole models in 16 bits compiled for a GPU, their CUDA text run on the CPU, against the masked model in float64."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

import fxprune
from fxprune import backend_cuda
from fxprune.codegen.cuda.tensor_tile import TensorSchedule
from fxprune.lowering.cuda.lower import lower
from fxprune.lowering.cuda.program import CudaProgram
from tests.compiling import QUICK, Masks, draw_masks, kernels, largest_difference, row_groups, run_masked, shuffled
from tests.lowering.cuda.emulated import tie_to_emulator
from tests.lowering.cuda.test_program import ARCH, MODELS
from tests.lowering.cuda.twin import program_of
from tests.networks import apply_masks

pytestmark = pytest.mark.usefixtures("no_nvcc")
MORE_THAN_DENSE = 1.25
"""Largest error as a multiple of dense torch's in the same type."""


def draw_model(name: str, kind: torch.dtype) -> tuple[nn.Module, Masks, torch.Tensor]:
    """Return a model of a type with masks and an input; the same arguments give the same ones."""
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make().to(kind)
    return model, draw_masks(model, row_groups(16, 0.4), shuffled(row_groups(8, 0.4))), torch.randn(shape).to(kind)


_QUICK = {("chain, batch 4", torch.float16), ("residual, batch 8", torch.bfloat16), ("tokens", torch.bfloat16)}
_ALL = [
    pytest.param(name, kind, marks=[pytest.mark.slow] * ((name, kind) not in _QUICK), id=f"{name}, {kind}")
    for name in MODELS
    for kind in (torch.bfloat16, torch.float16)
]


@pytest.mark.usefixtures("all_kernels")
@pytest.mark.parametrize(("name", "kind"), _ALL)
def test_a_program_is_as_exact_as_dense_torch_in_its_type(tmp_path: Path, name: str, kind: torch.dtype) -> None:
    model, masks, x = draw_model(name, kind)
    compiled = fxprune.compile(model, masks, ARCH, example_inputs=x)
    tie_to_emulator(compiled, tmp_path)
    steps = program_of(compiled).parts.steps
    assert kernels(compiled)
    assert all(isinstance(step.kernel.schedule, TensorSchedule) for step in steps)
    assert {buffer.dtype for buffer in program_of(compiled).buffers} == {kind}
    for value in (x, x + 1):
        wanted = run_masked(model, masks, value)
        with torch.no_grad():
            dense = apply_masks(copy.deepcopy(model), masks)(value)
        found = compiled(value)
        assert largest_difference(found, wanted) <= MORE_THAN_DENSE * largest_difference(dense, wanted)


def test_the_cost_model_takes_tensor_cores_for_16_bits_where_they_gain() -> None:
    model = nn.Sequential(*(nn.Conv2d(512, 512, 3, padding=1) for _ in range(2))).eval().to(torch.bfloat16)
    x = torch.randn(64, 512, 14, 14, dtype=torch.bfloat16)
    report = fxprune.compile(model, draw_masks(model, row_groups(128, 0.1)), ARCH, example_inputs=x).report
    assert [layer.kernel.split()[0] for layer in report.layers] == ["tensor", "tensor"]
    assert "dense in bfloat16" in report.layers[0].reason
    assert (
        "2 of 2 layers on kernels for sm_90a, chosen by the cost model for H200 on tensor cores" in report.whole_model
    )


def test_low_groups_stay_dense_in_16_bits() -> None:
    """Groups of 32 rows use every activation too seldom: the L2 cache cannot feed the tensor cores."""
    model = nn.Conv2d(256, 256, 3, padding=1).eval().to(torch.float16)
    x = torch.randn(64, 256, 14, 14, dtype=torch.float16)
    (layer,) = fxprune.compile(model, draw_masks(model, row_groups(32, 0.4)), ARCH, example_inputs=x).report.layers
    assert layer.kernel == "dense: torch"
    assert "dense in float16" in layer.reason


def test_layers_of_two_types_have_kernels_of_two_kinds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 16, 3).to(torch.bfloat16), nn.Conv2d(16, 20, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.second(self.first(x).float())
            return result

    monkeypatch.setattr("fxprune.lowering.cuda.select.predict_dense_us", lambda *_: 1e9)
    model, x = Mixed().eval(), torch.randn(2, 3, 6, 7, dtype=torch.bfloat16)
    masks = draw_masks(model, row_groups(16, 0.5))
    compiled = fxprune.compile(model, masks, ARCH, example_inputs=x)
    assert [layer.kernel.split()[0] for layer in compiled.report.layers] == ["tensor", "columns"]
    assert "in strict float32 and on tensor cores" in compiled.report.whole_model
    tie_to_emulator(compiled, tmp_path)
    with torch.no_grad():
        dense = apply_masks(copy.deepcopy(model), masks)(x)
    assert largest_difference(compiled(x), dense.double()) <= torch.finfo(torch.bfloat16).eps


def test_a_cpu_leaves_16_bits_to_torch() -> None:
    model, masks, x = draw_model("chain", torch.bfloat16)
    compiled = fxprune.compile(model, masks, example_inputs=x, options=QUICK)
    assert not kernels(compiled)
    assert "the kernels compute in float32, this layer in torch.bfloat16" in compiled.report.layers[0].reason
    assert largest_difference(compiled(x), run_masked(model, masks, x)) <= torch.finfo(torch.bfloat16).eps


@pytest.mark.usefixtures("all_kernels")
def test_a_program_is_made_again_from_its_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[fx.GraphModule] = []

    def lower_and_keep(gm: fx.GraphModule, *rest: Any, **options: Any) -> CudaProgram:
        kept.append(gm)
        return lower(gm, *rest, **options)

    monkeypatch.setattr("fxprune.backend_cuda.lower", lower_and_keep)
    model, masks, x = draw_model("chain", torch.float16)
    program = program_of(fxprune.compile(model, masks, ARCH, example_inputs=x))
    assert program.library is not None
    again = backend_cuda.restore(kept[0], json.loads(json.dumps(program.recipe)), program.library.binary)
    assert again.recipe == program.recipe
    assert [step.kernel.schedule for step in again.parts.steps] == [
        step.kernel.schedule for step in program.parts.steps
    ]
