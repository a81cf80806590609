"""The CUDA that goes to nvcc, run on a CPU with real threads and copies that arrive as late as they may."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fxprune.codegen.cuda.build import write_sources
from tests.codegen.cuda.emulator import Emulator
from tests.codegen.cuda.suite import make
from tests.codegen.cuda.test_columns import CASES, SCHEDULES
from tests.codegen.suite import TOLERANCE, draw_tensors, largest_error, place, view

_QUICK = ("several_tiles", "columns_13_negative", "halos_4", "batch_2", "flat_residual", "no_cells", "activation_gelu")
_ALL = {**CASES, **SCHEDULES}


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy that begins where torch's memory on a GPU begins: at a multiple of 512 bytes."""
    spare = torch.full((tensor.numel() + 128,), torch.nan)
    start = -spare.data_ptr() % 512 // 4
    return spare[start : start + tensor.numel()].copy_(tensor)


class Emulated:
    """Cases compiled into one emulator."""

    def __init__(self, names: tuple[str, ...], folder: Path, drop: str = "") -> None:
        self.tensors = {name: draw_tensors(_ALL[name].layer, name) for name in names}
        self.kernels = {name: make(_ALL[name], self.tensors[name]) for name in names}
        (source,) = write_sources([{name: kernel.script(name) for name, kernel in self.kernels.items()}], "sm_80")
        self.emulator = Emulator(replace(source, text=source.text.replace(drop, "")) if drop else source, folder)

    def check(self, name: str) -> None:
        """Compare a kernel with torch in float64; its output is NaN before."""
        case, kernel, tensors = _ALL[name], self.kernels[name], self.tensors[name]
        work = kernel.work
        y = _aligned(torch.full((work.y.numel,), torch.nan))
        given = {"X": _aligned(place(tensors.x, work.x, work.shape.padding)), "Y": y}
        given["W"] = _aligned(torch.from_numpy(kernel.arrays["W"]))
        if work.residual is not None and tensors.residual is not None:
            given["RES"] = _aligned(place(tensors.residual, work.residual))
        self.emulator.run(name, kernel, given)
        assert largest_error(view(y, work.y), tensors.reference(case.layer)) <= TOLERANCE, name
        outside = torch.ones(work.y.numel, dtype=torch.bool)
        view(outside, work.y).fill_(False)
        assert bool(y[outside].isnan().all()), f"{name}: written into the halo"


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    return Emulated(_QUICK, tmp_path_factory.mktemp("emulated"))


@pytest.mark.parametrize("name", _QUICK)
def test_the_cuda_text_equals_torch(emulated: Emulated, name: str) -> None:
    emulated.check(name)


def test_a_kernel_that_does_not_wait_for_its_copies_is_seen(tmp_path: Path) -> None:
    broken = Emulated(("several_tiles",), tmp_path, drop="    fxprune_wait0();\n")
    with pytest.raises(AssertionError, match="several_tiles"):
        broken.check("several_tiles")


@pytest.mark.slow
def test_every_cuda_text_equals_torch(tmp_path: Path) -> None:
    everything = Emulated(tuple(_ALL), tmp_path)
    for name in _ALL:
        everything.check(name)
