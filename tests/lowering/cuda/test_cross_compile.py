"""From masks to machine code on a machine without a GPU, with the real TVM and the real nvcc."""

from __future__ import annotations

import copy
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune.codegen.cuda.nvcc import find_nvcc
from fxprune.codegen.cuda.target import ARCHITECTURES
from fxprune.codegen.cuda.tensor_tile import TensorSchedule
from tests.compiling import TOLERANCE, draw_masks, kernels, largest_difference, row_groups, run_masked
from tests.lowering.cuda.emulated import tie_to_emulator
from tests.lowering.cuda.test_tensor_program import MORE_THAN_DENSE
from tests.lowering.cuda.test_tf32 import RoundedLayers
from tests.lowering.cuda.twin import program_of, tie_to_twin
from tests.networks import apply_masks, randomise_norms

torchvision = pytest.importorskip("torchvision")

pytestmark = pytest.mark.skipif(find_nvcc() is None, reason="needs nvcc, of the CUDA toolkit; no GPU")

TARGET = {"kind": "cuda", "arch": "sm_90a"}

_LONGEST_SECONDS = 300
"""From masks to machine code on two cores; it takes some 40."""


_SLOWLY = [pytest.param(arch, marks=[pytest.mark.slow] * (arch != "sm_90a")) for arch in ARCHITECTURES]


@pytest.mark.parametrize("arch", _SLOWLY)
def test_a_small_network_becomes_machine_code(arch: str) -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Conv2d(128, 128, 3, padding=1), nn.ReLU()) for _ in range(3))).eval()
    masks = draw_masks(model, row_groups(32, 0.1))
    target = {"kind": "cuda", "arch": arch}
    compiled = fxprune.compile(model, masks, target, example_inputs=torch.randn(32, 128, 28, 28))
    library = program_of(compiled).library
    assert library is not None
    assert library.arch == arch
    assert all(part.cubin.startswith(b"\x7fELF") for part in library.parts)
    assert {function.resources.spill_bytes for function in library.functions.values()} == {0}
    assert len(kernels(compiled)) == 3


NETWORKS = ("resnet18", "resnet50", "vgg16_bn")
KINDS: dict[str, tuple[torch.dtype, dict[str, object]]] = {
    "float32": (torch.float32, {}), "tf32": (torch.float32, {"precision": "tf32"}), "bfloat16": (torch.bfloat16, {})
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_becomes_a_saved_artifact_in_minutes(tmp_path: Path, name: str, kind: str) -> None:
    dtype, options = KINDS[kind]
    model = torchvision.models.get_model(name, weights=None).eval()
    masks = draw_masks(model, row_groups(64, 0.1))
    x = torch.randn(64, 3, 224, 224, dtype=dtype)
    start = time.perf_counter()
    compiled = fxprune.compile(model.to(dtype), masks, TARGET, example_inputs=x, options=options)
    compiled.save(tmp_path / "model.fxp")
    assert time.perf_counter() - start < _LONGEST_SECONDS
    library = program_of(fxprune.load(tmp_path / "model.fxp")).library
    assert library is not None
    assert {function.resources.spill_bytes for function in library.functions.values()} == {0}
    assert len(kernels(compiled)) >= 8


@pytest.mark.slow
@pytest.mark.usefixtures("all_kernels")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_on_the_twins_is_the_masked_model(name: str) -> None:
    model = randomise_norms(torchvision.models.get_model(name, weights=None).eval())
    masks = draw_masks(model, row_groups(32, 0.2), row_groups(64, 0.3))
    x = torch.randn(2, 3, 64, 64)
    compiled = fxprune.compile(model, masks, TARGET, example_inputs=x)
    tie_to_twin(compiled)
    assert len(kernels(compiled)) == sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in model.modules())
    assert largest_difference(compiled(x), run_masked(model, masks, x)) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.usefixtures("all_kernels", "only_tensor_cores")
@pytest.mark.parametrize("kind", ["tf32", "bfloat16"])
def test_resnet18_on_emulated_tensor_cores_is_as_exact_as_dense_torch(tmp_path: Path, kind: str) -> None:
    dtype, options = KINDS[kind]
    model = randomise_norms(torchvision.models.resnet18(weights=None).eval()).to(dtype)
    masks = draw_masks(model, row_groups(64, 0.2))
    x = torch.randn(1, 3, 33, 40).to(dtype)
    compiled = fxprune.compile(model, masks, TARGET, example_inputs=x, options=options)
    tie_to_emulator(compiled, tmp_path)
    assert all(isinstance(step.kernel.schedule, TensorSchedule) for step in program_of(compiled).parts.steps)
    wanted = run_masked(model, masks, x)
    with torch.no_grad(), RoundedLayers() if kind == "tf32" else nullcontext():
        dense = apply_masks(copy.deepcopy(model), masks)(x)
    assert largest_difference(compiled(x), wanted) <= MORE_THAN_DENSE * largest_difference(dense, wanted)
