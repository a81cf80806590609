"""The last guard of a program for a GPU: its first run decides between kernels and dense torch, by timing both there.

Kernels were chosen by predictions, maybe on another machine. Here is the GPU, and whichever is faster runs from now on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence

import torch
from torch import fx

from fxprune.codegen.cuda.build import CudaLibrary
from fxprune.codegen.cuda.device import Device
from fxprune.errors import UnsupportedError
from fxprune.lowering.choice import gains
from fxprune.lowering.cuda.program import CudaProgram
from fxprune.report import Verdict

logger = logging.getLogger(__name__)


class GuardedProgram:
    """A program with kernels and the same graph on dense torch; after the first run it is one of them.

    Attributes:
        library: The kernels, whatever runs: they may be faster on another GPU.
        recipe: What the graph was lowered with for them.
        verdict: What the first run found; None before it.
    """

    def __init__(self, kernels: CudaProgram, dense: CudaProgram) -> None:
        """Take both; they are tied to a device by the first run.

        Args:
            kernels: The program with kernels.
            dense: The same graph on dense torch.
        """
        self.library: CudaLibrary | None = kernels.library
        self.recipe: Mapping[str, object] = kernels.recipe
        self.verdict: Verdict | None = None
        self._program = kernels
        self._rival: CudaProgram | None = dense
        self._lock = threading.Lock()

    @property
    def graph_module(self) -> fx.GraphModule:
        """The lowered graph that runs."""
        return self._program.graph_module

    @property
    def program(self) -> CudaProgram:
        """What runs: that with kernels, unless the first run found dense torch to be faster."""
        return self._program

    def tie(self, device: Device) -> None:
        """Bring both to a device.

        Raises:
            UnsupportedError: The device has too little memory.
        """
        self._program.tie(device)
        if self._rival is not None:
            self._rival.tie(device)

    def run(self, inputs: Sequence[object]) -> list[object]:
        """Run on flat inputs of the captured shapes; the results share no memory with the program.

        Raises:
            UnsupportedError: There is no GPU that can run it, or an input is on another device.
        """
        if self._rival is None:
            return self._program.run(inputs)
        with self._lock:
            outputs = self._program.run(inputs)
            if self._rival is not None:
                self._decide(inputs, self._rival)
        return outputs

    def _decide(self, inputs: Sequence[object], rival: CudaProgram) -> None:
        """Keep the faster one; while somebody records a CUDA graph nothing is timed, a later run decides."""
        kernels, device = self._program, self._program.device
        assert device is not None
        if device.is_recording():
            return
        try:
            times = device.time({"kernels": lambda: kernels.run(inputs), "dense": lambda: rival.run(inputs)})
        except (UnsupportedError, torch.OutOfMemoryError) as error:
            text = f"sparse: not confirmed on {device.name}, where dense torch beside it cannot run: {error}"
            self._settle(kernels, Verdict(True, text))
            return
        ours, theirs = times["kernels"] / 1e3, times["dense"] / 1e3
        if gains(ours, theirs):
            text = f"sparse: measured {ours:.3f} ms on {device.name}, the same graph on dense torch {theirs:.3f} ms"
            self._settle(kernels, Verdict(True, text))
        else:
            text = (
                f"dense: the whole model is no faster with kernels: measured {ours:.3f} ms on {device.name}, on dense "
                f"torch {theirs:.3f} ms"
            )
            self._settle(rival, Verdict(False, text))

    def _settle(self, program: CudaProgram, verdict: Verdict) -> None:
        self._program, self._rival, self.verdict = program, None, verdict
        logger.info("%s", verdict.text)
