"""CUDA kernels checked without a GPU: the twin of each runs on the CPU, its threads forwards or backwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import tvm_ffi

from fxprune.annotation import RowGroupPattern
from fxprune.codegen.build import Library
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.cuda.columns import Form
from fxprune.codegen.cuda.kernel import CudaKernel, make_kernel
from fxprune.codegen.cuda.tensor_tile import AnySchedule
from fxprune.codegen.cuda.tile import ColumnsSchedule
from fxprune.codegen.target import parse_target
from fxprune.codegen.workload import CellType, ConvShape, Layout, Workload
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


_NO_CPU = RowsSchedule(1, 1, (1, 1), "pixels")
"""Stands where `Case` wants a schedule for a CPU."""


@dataclass(frozen=True)
class CudaCase:
    """One kernel to build and to check.

    Attributes:
        layer: The layer, its epilogue and its halos.
        schedule: Options of the kernel.
        cells: Type of its activations' cells.
    """

    layer: Case
    schedule: AnySchedule
    cells: CellType = "float32"

    @property
    def shape(self) -> ConvShape:
        """The layer's geometry."""
        return self.layer.shape

    @property
    def pattern(self) -> RowGroupPattern:
        """The row groups of its weight."""
        return self.layer.pattern

    def workload(self) -> Workload:
        """Place the tensors."""
        case, shape = self.layer, self.layer.shape
        around = shape.padding if case.x_halo is None else case.x_halo
        x = Layout("chwn", shape.batch, shape.channels_in, shape.spatial_in, around, self.cells)
        y = Layout("chwn", shape.batch, shape.channels_out, shape.spatial_out, case.y_halo, self.cells)
        residual = replace(y, halo=case.residual_halo) if case.residual else None
        return Workload(shape, x, y, residual, case.activation, case.activation_args, 1)


def cuda_case(
    shape: ConvShape, schedule: AnySchedule, pattern: RowGroupPattern, cells: CellType = "float32", **options: Any
) -> CudaCase:
    """Return a case; options are fields of `Case`."""
    return CudaCase(Case(shape, _NO_CPU, pattern, **options), schedule, cells)


def make(case: CudaCase, tensors: Tensors) -> CudaKernel:
    """Pack a case for a GPU."""
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

    def __init__(self, cases: Mapping[str, CudaCase], form: Form = "twin") -> None:
        self.cases = dict(cases)
        self.tensors = {name: draw_tensors(case.layer, name) for name, case in cases.items()}
        self.kernels = {name: make(case, self.tensors[name]) for name, case in cases.items()}
        scripts = {name: kernel.script(name, form) for name, kernel in self.kernels.items()}
        self.library = Library(scripts, parse_target("cpu", 1))

    def check(self, name: str) -> None:
        """Compare a twin with torch in float64."""
        tensors = self.tensors[name]
        found = run_twin(self.library, name, self.kernels[name], tensors)
        wanted = tensors.reference(self.cases[name].layer)
        assert found.shape == wanted.shape
        error = largest_error(found, wanted)
        assert error <= TOLERANCE, f"{name}: error {error} with {self.cases[name].schedule}"
