"""A device whose kernels are the CUDA text itself on the CPU: programs with tensor cores run without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from fxprune import CompiledModule
from fxprune.codegen.cuda.build import write_sources
from fxprune.codegen.cuda.driver import Grid
from tests.codegen.cuda.emulated import aligned
from tests.codegen.cuda.emulator import Emulator
from tests.lowering.cuda.twin import TwinDevice, program_of, tie


class EmulatedDevice(TwinDevice):
    """Stands for the GPU; a kernel works on copies that are aligned as a GPU's tensors are."""

    def __init__(self, scripts: Mapping[str, str], folder: Path, arch: str = "sm_90a") -> None:
        """Compile kernels with the C++ compiler.

        Args:
            scripts: TVMScript by global symbol.
            folder: Where files may be written.
            arch: What TVM writes CUDA for.
        """
        self.torch_device = torch.device("cpu")
        (source,) = write_sources([scripts], arch)
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
    scripts = {step.function: step.kernel.script(step.function) for step in program.parts.steps}
    tie(compiled, EmulatedDevice(scripts, folder, program.parts.target.arch))
