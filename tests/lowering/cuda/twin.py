"""A device whose kernels are the twins on the CPU: a whole compiled program runs without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import tvm_ffi

from fxprune import CompiledModule
from fxprune.codegen.build import Library
from fxprune.codegen.cuda.device import Device
from fxprune.codegen.cuda.driver import Grid
from fxprune.codegen.target import parse_target
from fxprune.errors import UnsupportedError
from fxprune.guarded import GuardedProgram
from fxprune.lowering.cuda.program import CudaProgram

ORDER = ("X", "W", "OFF", "BEGIN", "STEPS", "BASE", "ROWS", "BIAS", "Y", "RES")
"""A twin's arguments."""


class TwinDevice:
    """Stands for the GPU; its buffers are poisoned where a program relies on nothing.

    Attributes:
        launches: Grids of all launches so far, by function.
        times: What it says that calls take, microseconds by name.
    """

    def __init__(self, program: CudaProgram) -> None:
        """Build the twins of a program's kernels."""
        self.torch_device = torch.device("cpu")
        scripts = {step.function: step.kernel.script(step.function, "twin") for step in program.parts.steps}
        self._library = Library(scripts, parse_target("cpu", 1)) if scripts else None
        self.launches: list[tuple[str, Grid]] = []
        self.times = {"kernels": 1000.0, "dense": 2000.0}

    def running(self) -> AbstractContextManager[None]:
        """Nothing has to be made ready."""
        return nullcontext()

    @property
    def name(self) -> str:
        """What stands in reports."""
        return "twin"

    def time(self, calls: Mapping[str, Callable[[], object]]) -> Mapping[str, float]:
        """Return `times` and call nothing."""
        return {name: self.times[name] for name in calls}

    def is_recording(self) -> bool:
        """A CPU records nothing."""
        return False

    def record(self, run: Callable[[], list[object]]) -> tuple[Callable[[], None], list[object]]:
        """Refuse: a CPU records nothing."""
        del run
        raise UnsupportedError("a CPU has no graphs.")

    def bind(self, name: str, grid: Grid, tensors: Mapping[str, torch.Tensor]) -> Callable[[], None]:
        """Return a call of a twin."""
        assert self._library is not None
        arguments = [tvm_ffi.from_dlpack(tensors[key]) for key in ORDER if key in tensors]
        function = self._library[name]

        def run() -> None:
            self.launches.append((name, grid))
            function(*arguments)

        return run


def program_of(compiled: CompiledModule) -> CudaProgram:
    """Return the program compiled last, that with kernels of a guarded one that has not run yet."""
    program = compiled._last().program
    program = program.program if isinstance(program, GuardedProgram) else program
    assert isinstance(program, CudaProgram)
    return program


def tie(compiled: CompiledModule, device: Device) -> None:
    """Bring the program compiled last to a device."""
    program = compiled._last().program
    assert isinstance(program, (GuardedProgram, CudaProgram))
    program.tie(device)


def tie_to_twin(compiled: CompiledModule) -> TwinDevice:
    """Make a compiled model run on the twins of its kernels."""
    device = TwinDevice(program_of(compiled))
    tie(compiled, device)
    return device
