"""A device whose kernels are the CUDA text itself on the CPU: programs with tensor cores run without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from fxprune import CompiledModule
from fxprune.codegen.cuda.build import write_sources
from fxprune.codegen.cuda.driver import Grid
from fxprune.lowering.cuda.program import CudaProgram
from tests.codegen.cuda.emulated import aligned
from tests.codegen.cuda.emulator import Emulator
from tests.lowering.cuda.twin import TwinDevice, program_of, tie


class EmulatedDevice(TwinDevice):
    """Stands for the GPU; a kernel works on copies that are aligned as a GPU's tensors are."""

    def __init__(self, program: CudaProgram, folder: Path) -> None:
        """Compile the kernels of a program with the C++ compiler."""
        self.torch_device = torch.device("cpu")
        scripts = {step.function: step.kernel.script(step.function) for step in program.parts.steps}
        (source,) = write_sources([scripts], program.parts.target.arch)
        self._emulator = Emulator(source, folder)
        self.launches, self.times = [], {"kernels": 1000.0, "dense": 2000.0}

    def bind(self, name: str, grid: Grid, tensors: Mapping[str, torch.Tensor]) -> Callable[[], None]:
        """Return a call of a kernel."""

        def run() -> None:
            self.launches.append((name, grid))
            copies = {key: aligned(tensor) for key, tensor in tensors.items()}
            self._emulator.launch(name, grid.blocks, grid.threads, copies)
            tensors["Y"].copy_(copies["Y"])

        return run


def tie_to_emulator(compiled: CompiledModule, folder: Path) -> None:
    """Make a compiled model run on the CUDA text of its kernels."""
    program = program_of(compiled)
    tie(compiled, EmulatedDevice(program, folder))
