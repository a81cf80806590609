"""CUDA kernels checked without a GPU: the twin of each runs on the CPU, its threads forwards or backwards."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import tvm_ffi

from fxprune.codegen.build import Library
from fxprune.codegen.cuda.columns import ColumnsSchedule, Form
from fxprune.codegen.cuda.kernel import CudaKernel, make_kernel
from fxprune.codegen.target import parse_target
from tests.codegen.suite import (
    TOLERANCE,
    Case,
    Tensors,
    draw_tensors,
    guards_are_intact,
    largest_error,
    place,
    poisoned,
    view,
)

SMALL = ColumnsSchedule(16, 64, 8, 2, (4, 4))
TALL = ColumnsSchedule(32, 64, 16, 3, (8, 8), "blocks")
WIDE = ColumnsSchedule(8, 128, 8, 2, (4, 4))
SQUARE = ColumnsSchedule(64, 64, 8, 3, (8, 8))


def make(case: Case, tensors: Tensors) -> CudaKernel:
    """Pack a case for a GPU."""
    assert isinstance(case.schedule, ColumnsSchedule)
    return make_kernel(case.workload(), case.schedule, tensors.weight, case.pattern, tensors.bias)


def arguments(kernel: CudaKernel, x: torch.Tensor, y: torch.Tensor, residual: torch.Tensor | None) -> list[object]:
    """Return a twin's arguments in order."""
    arrays = [torch.from_numpy(array) for array in kernel.arrays.values()]
    tensors = [x, *arrays, y, *([] if residual is None else [residual])]
    return [tvm_ffi.from_dlpack(tensor) for tensor in tensors]


def run_twin(library: Library, name: str, kernel: CudaKernel, tensors: Tensors) -> torch.Tensor:
    """Run a twin with a poisoned output; checks that it wrote the inside of the output and nothing else."""
    work = kernel.work
    x = place(tensors.x, work.x, work.shape.padding)
    residual = None
    if work.residual is not None and tensors.residual is not None:
        residual = place(tensors.residual, work.residual)
    y = poisoned(work.y.numel)
    library[name](*arguments(kernel, x, y, residual))
    assert guards_are_intact(y), "written outside the output"
    outside = torch.ones(work.y.numel, dtype=torch.bool)
    view(outside, work.y).fill_(False)
    assert bool(y[outside].isnan().all()), "written into the halo"
    return view(y, work.y)


class TwinSuite:
    """The twins of many cases, built into one library."""

    def __init__(self, cases: Mapping[str, Case], form: Form = "twin") -> None:
        self.cases = dict(cases)
        self.tensors = {name: draw_tensors(case, name) for name, case in cases.items()}
        self.kernels = {name: make(case, self.tensors[name]) for name, case in cases.items()}
        scripts = {name: kernel.script(name, form) for name, kernel in self.kernels.items()}
        self.library = Library(scripts, parse_target("cpu", 1))

    def check(self, name: str) -> None:
        """Compare a twin with torch in float64."""
        tensors = self.tensors[name]
        found = run_twin(self.library, name, self.kernels[name], tensors)
        wanted = tensors.reference(self.cases[name])
        assert found.shape == wanted.shape
        error = largest_error(found, wanted)
        assert error <= TOLERANCE, f"{name}: error {error} with {self.cases[name].schedule}"
