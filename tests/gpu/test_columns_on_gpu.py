"""Gathered-column kernels on a GPU against torch in float64: every case of the checks without one, poisoned outputs."""

from __future__ import annotations

import pytest
import torch

from fxprune.codegen.cuda.cache import open_library
from fxprune.codegen.cuda.device import Gpu
from fxprune.codegen.cuda.driver import Grid
from tests.codegen.cuda.emulated import TYPES, is_tf32, most_wrong, multiplied, rounded
from tests.codegen.cuda.suite import CudaCase, make
from tests.codegen.cuda.test_columns import CASES
from tests.codegen.cuda.test_columns import SCHEDULES as TILES
from tests.codegen.cuda.test_tensor_columns import CASES as TENSOR_CASES
from tests.codegen.cuda.test_tensor_columns import SCHEDULES as TENSOR_TILES
from tests.codegen.suite import Tensors, draw_tensors, place, view

ALL = {**CASES, **TILES, **{f"tensor_{name}": case for name, case in {**TENSOR_CASES, **TENSOR_TILES}.items()}}

_GUARD = 64
"""Cells before and after an output that no kernel may write."""


@pytest.fixture(scope="module")
def kernels(gpu: torch.device, arch: str) -> Gpu:
    scripts = {name: make(case, draw_tensors(case.layer, name)).script(name) for name, case in ALL.items()}
    return Gpu(open_library(scripts, arch), gpu)


def draw(name: str) -> Tensors:
    """Draw the numbers of a case, as its type has them."""
    return rounded(draw_tensors(ALL[name].layer, name), ALL[name].cells)


def reference(name: str) -> torch.Tensor:
    """Return the exact result; TF32 rounds what it multiplies."""
    case, tensors = ALL[name], draw(name)
    return (multiplied(tensors) if is_tf32(case) else tensors).reference(case.layer)


def run_on_gpu(kernels: Gpu, name: str, case: CudaCase) -> torch.Tensor:
    """Run a kernel with a poisoned output; checks that it wrote the inside of the output and nothing else."""
    tensors = draw(name)
    kernel, device = make(case, tensors), kernels.torch_device
    work, kind = kernel.work, TYPES[case.cells]
    arguments = {key: torch.from_numpy(array).to(device) for key, array in kernel.arrays.items()}
    arguments["X"] = place(tensors.x, work.x, work.shape.padding).to(device, kind)
    if work.residual is not None and tensors.residual is not None:
        arguments["RES"] = place(tensors.residual, work.residual).to(device, kind)
    whole = torch.full((work.y.numel + 2 * _GUARD,), torch.nan, dtype=kind, device=device)
    arguments["Y"] = whole[_GUARD:-_GUARD]
    with kernels.running():
        kernels.bind(name, Grid(kernel.grid, kernel.schedule.threads), arguments)()
    torch.cuda.synchronize(device)
    assert bool(whole[:_GUARD].isnan().all() and whole[-_GUARD:].isnan().all()), "written outside the output"
    found = whole.cpu()[_GUARD:-_GUARD]
    outside = torch.ones(work.y.numel, dtype=torch.bool)
    view(outside, work.y).fill_(False)
    assert bool(found[outside].isnan().all()), "written into the halo"
    return view(found, work.y)


@pytest.mark.parametrize("name", ALL)
def test_the_kernel_equals_torch(kernels: Gpu, name: str) -> None:
    case = ALL[name]
    assert most_wrong(run_on_gpu(kernels, name, case), reference(name), case.cells) <= 1


@pytest.mark.parametrize("name", ["several_tiles", "batch_64", "halos_4", "tensor_batch_64"])
def test_a_second_run_gives_the_same_bits(kernels: Gpu, name: str) -> None:
    assert torch.equal(run_on_gpu(kernels, name, ALL[name]), run_on_gpu(kernels, name, ALL[name]))
