"""From masks to machine code on a machine without a GPU, with the real TVM and the real nvcc."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

import fxprune
from fxprune.codegen.cuda.nvcc import find_nvcc
from fxprune.codegen.cuda.target import ARCHITECTURES
from tests.compiling import TOLERANCE, draw_masks, kernels, largest_difference, row_groups, run_masked
from tests.lowering.cuda.twin import program_of, tie_to_twin
from tests.networks import randomise_norms

torchvision = pytest.importorskip("torchvision")

pytestmark = pytest.mark.skipif(find_nvcc() is None, reason="needs nvcc, of the CUDA toolkit; no GPU")

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


@pytest.mark.slow
def test_resnet18_becomes_machine_code_in_minutes() -> None:
    model = torchvision.models.resnet18(weights=None).eval()
    masks = draw_masks(model, row_groups(32, 0.2))
    start = time.perf_counter()
    target = {"kind": "cuda", "arch": "sm_90a"}
    compiled = fxprune.compile(model, masks, target, example_inputs=torch.randn(64, 3, 224, 224))
    assert time.perf_counter() - start < _LONGEST_SECONDS
    library = program_of(compiled).library
    assert library is not None
    assert {function.resources.spill_bytes for function in library.functions.values()} == {0}
    assert len(kernels(compiled)) >= 17


@pytest.mark.slow
def test_resnet18_on_the_twins_is_the_masked_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.lowering.cuda.select.predict_dense_us", lambda *_: 1e9)
    model = randomise_norms(torchvision.models.resnet18(weights=None).eval())
    masks = draw_masks(model, row_groups(32, 0.2), row_groups(64, 0.3))
    x = torch.randn(2, 3, 64, 64)
    compiled = fxprune.compile(model, masks, {"kind": "cuda", "arch": "sm_90a"}, example_inputs=x)
    tie_to_twin(compiled)
    assert len(kernels(compiled)) == 21
    assert largest_difference(compiled(x), run_masked(model, masks, x)) <= TOLERANCE
