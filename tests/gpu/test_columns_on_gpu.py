"""Gathered-column kernels on a GPU against torch in float64: every case of the twins, with poisoned outputs."""

from __future__ import annotations

import pytest
import torch

from fxprune.codegen.cuda.cache import open_library
from fxprune.codegen.cuda.device import Gpu
from fxprune.codegen.cuda.driver import Grid
from tests.codegen.cuda.suite import CudaCase, make
from tests.codegen.cuda.test_columns import CASES
from tests.codegen.cuda.test_columns import SCHEDULES as TILES
from tests.codegen.suite import TOLERANCE, draw_tensors, guards_are_intact, largest_error, place, poisoned, view

ALL = {**CASES, **TILES}


@pytest.fixture(scope="module")
def kernels(gpu: torch.device, arch: str) -> Gpu:
    scripts = {name: make(case, draw_tensors(case.layer, name)).script(name) for name, case in ALL.items()}
    return Gpu(open_library(scripts, arch), gpu)


def run_on_gpu(kernels: Gpu, name: str, case: CudaCase) -> torch.Tensor:
    """Run a kernel with a poisoned output; checks that it wrote the inside of the output and nothing else."""
    tensors = draw_tensors(case.layer, name)
    kernel, device = make(case, tensors), kernels.torch_device
    work = kernel.work
    arguments = {key: torch.from_numpy(array).to(device) for key, array in kernel.arrays.items()}
    arguments["X"] = place(tensors.x, work.x, work.shape.padding).to(device)
    if work.residual is not None and tensors.residual is not None:
        arguments["RES"] = place(tensors.residual, work.residual).to(device)
    y = poisoned(work.y.numel)
    whole = torch.empty(0).set_(y.untyped_storage()).to(device)
    arguments["Y"] = whole[y.storage_offset() : y.storage_offset() + y.numel()]
    with kernels.running():
        kernels.bind(name, Grid(kernel.grid, kernel.schedule.threads), arguments)()
    torch.cuda.synchronize(device)
    found = whole.cpu()[y.storage_offset() : y.storage_offset() + y.numel()]
    assert guards_are_intact(found), "written outside the output"
    outside = torch.ones(work.y.numel, dtype=torch.bool)
    view(outside, work.y).fill_(False)
    assert bool(found[outside].isnan().all()), "written into the halo"
    return view(found, work.y)


@pytest.mark.parametrize("name", ALL)
def test_the_kernel_equals_torch(kernels: Gpu, name: str) -> None:
    found = run_on_gpu(kernels, name, ALL[name])
    wanted = draw_tensors(ALL[name].layer, name).reference(ALL[name].layer)
    assert largest_error(found, wanted) <= TOLERANCE


@pytest.mark.parametrize("name", ["several_tiles", "batch_64", "halos_4"])
def test_a_second_run_gives_the_same_bits(kernels: Gpu, name: str) -> None:
    assert torch.equal(run_on_gpu(kernels, name, ALL[name]), run_on_gpu(kernels, name, ALL[name]))
