"""Cases run as the CUDA text itself on the CPU, and compared with torch in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fxprune.codegen.cuda.build import write_sources
from fxprune.codegen.cuda.fragments import round_tf32
from fxprune.codegen.cuda.tensor_tile import TensorSchedule
from fxprune.codegen.workload import CellType
from tests.codegen.cuda.emulator import Emulator
from tests.codegen.cuda.suite import CudaCase, make
from tests.codegen.suite import TOLERANCE, Tensors, draw_tensors, place, view

TYPES: dict[CellType, torch.dtype] = {
    "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16
}  # fmt: skip


def is_tf32(case: CudaCase) -> bool:
    """Whether a kernel multiplies float32 as TF32."""
    return case.cells == "float32" and isinstance(case.schedule, TensorSchedule)


def multiplied(tensors: Tensors) -> Tensors:
    """Return input and weight as a kernel in TF32 multiplies them; it rounds them itself."""
    x = torch.from_numpy(round_tf32(tensors.x.numpy()))
    return replace(tensors, x=x, weight=round_tf32(tensors.weight))


def rounded(tensors: Tensors, cells: CellType) -> Tensors:
    """Return input, residual and weight rounded to the cells' type; the bias stays float32."""
    kind = TYPES[cells]
    residual = None if tensors.residual is None else tensors.residual.to(kind).float()
    weight = torch.from_numpy(tensors.weight).to(kind).float().numpy()
    return replace(tensors, x=tensors.x.to(kind).float(), residual=residual, weight=np.ascontiguousarray(weight))


def most_wrong(found: torch.Tensor, wanted: torch.Tensor, cells: CellType) -> float:
    """Return the largest error over what one rounding of the exact result may cost; up to 1 is right.

    A sum in float32 may be off by `TOLERANCE` of the largest output before it is rounded.
    """
    share = 0.0 if cells == "float32" else torch.finfo(TYPES[cells]).eps / 2
    allowed = wanted.abs() * share + wanted.abs().max().clamp(min=1e-30) * TOLERANCE
    return float(((found.double() - wanted).abs() / allowed).max())


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy that begins where torch's memory on a GPU begins: at a multiple of 512 bytes."""
    size = tensor.element_size()
    spare = torch.zeros(tensor.numel() + 512 // size, dtype=tensor.dtype)
    start = -spare.data_ptr() % 512 // size
    return spare[start : start + tensor.numel()].copy_(tensor)


class Emulated:
    """Cases compiled into one emulator."""

    def __init__(self, cases: Mapping[str, CudaCase], folder: Path, change: tuple[str, str] = ("", "")) -> None:
        """Compile the cases; `change` replaces a part of the text, to see that it is missed."""
        self.cases = dict(cases)
        self.tensors = {name: rounded(draw_tensors(case.layer, name), case.cells) for name, case in cases.items()}
        self.kernels = {name: make(case, self.tensors[name]) for name, case in cases.items()}
        (source,) = write_sources([{name: kernel.script(name) for name, kernel in self.kernels.items()}], "sm_80")
        if change[0]:
            assert change[0] in source.text
            source = replace(source, text=source.text.replace(*change))
        self.emulator = Emulator(source, folder)

    def run(self, name: str) -> torch.Tensor:
        """Run a kernel; its output is NaN before, and what surrounds the output stays that."""
        kernel, tensors = self.kernels[name], self.tensors[name]
        work, kind = kernel.work, TYPES[self.cases[name].cells]
        y = aligned(torch.full((work.y.numel,), torch.nan, dtype=kind))
        given = {"X": aligned(place(tensors.x, work.x, work.shape.padding).to(kind)), "Y": y}
        given["W"] = aligned(torch.from_numpy(kernel.arrays["W"]))
        if work.residual is not None and tensors.residual is not None:
            given["RES"] = aligned(place(tensors.residual, work.residual).to(kind))
        self.emulator.run(name, kernel, given)
        outside = torch.ones(work.y.numel, dtype=torch.bool)
        view(outside, work.y).fill_(False)
        assert bool(y[outside].isnan().all()), f"{name}: written into the halo"
        return view(y, work.y)

    def check(self, name: str) -> None:
        """Compare a kernel with torch in float64."""
        case = self.cases[name]
        tensors = multiplied(self.tensors[name]) if is_tf32(case) else self.tensors[name]
        wrong = most_wrong(self.run(name), tensors.reference(case.layer), case.cells)
        assert wrong <= 1, f"{name}: {wrong} of what rounding may cost with {case.schedule}"
