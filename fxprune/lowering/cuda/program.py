"""A program for a GPU: kernels, dense layers and torch's operators in graph order.

It is made without a GPU and holds machine code as bytes. The first call ties it to the device of its inputs: buffers,
weights and constants go there, the code is loaded. Every kernel reads and writes fixed buffers, on torch's stream; so
from the third call on a run is the replay of one CUDA graph where that can be (see `recording`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import fx
from torch.fx.node import Argument

from fxprune.codegen.cuda.build import CudaLibrary
from fxprune.codegen.cuda.device import Device, Gpu, find_gpu
from fxprune.codegen.cuda.driver import Grid
from fxprune.codegen.cuda.kernel import CudaKernel
from fxprune.codegen.cuda.target import CudaTarget
from fxprune.codegen.workload import Layout
from fxprune.errors import UnsupportedError
from fxprune.layer import Layer
from fxprune.lowering.cuda.modules import CopyModule, LaunchModule
from fxprune.lowering.cuda.precision import float32_precision
from fxprune.lowering.cuda.recording import Recording
from fxprune.lowering.dense import DenseLayer
from fxprune.lowering.geometry import buffer_view


@dataclass(frozen=True, eq=False)
class Step:
    """One launch.

    Attributes:
        module: Its node's module.
        kernel: The packed layer.
        function: Its name in the library.
        layer: The layer.
        x: Number of the input's buffer.
        y: Number of the output's buffer.
        residual: Number of the residual's buffer, or None.
    """

    module: LaunchModule
    kernel: CudaKernel
    function: str
    layer: Layer
    x: int
    y: int
    residual: int | None


@dataclass(frozen=True, eq=False)
class Parts:
    """What a program is made of.

    Attributes:
        graph_module: The lowered graph.
        steps: Its launches.
        copies: Its copies into kernels' buffers, each with the number of the buffer.
        buffers: The layout of each buffer.
        library: The kernels; None if there are none.
        target: The GPU it was made for.
        recipe: What it was lowered with, as JSON.
    """

    graph_module: fx.GraphModule
    steps: tuple[Step, ...]
    copies: tuple[tuple[CopyModule, int], ...]
    buffers: tuple[Layout, ...]
    library: CudaLibrary | None
    target: CudaTarget
    recipe: Mapping[str, object]


class CudaProgram:
    """A model compiled for one set of input shapes; calls from several threads take turns.

    Attributes:
        graph_module: The lowered graph.
        kernels: Bytes of the packed weight of every layer that a kernel runs, by module path.
        parts: What it is made of.
        buffers: Flat memory of each buffer; empty until the program is tied to a device.
    """

    def __init__(self, parts: Parts) -> None:
        """Take the parts that `lower` made."""
        self.graph_module, self.parts = parts.graph_module, parts
        self.kernels = {step.module.name: step.kernel.size_bytes for step in parts.steps}
        self.buffers: tuple[torch.Tensor, ...] = ()
        self._device: Device | None = None
        self._recording: Recording | None = None
        self._lock = threading.Lock()

    @property
    def library(self) -> CudaLibrary | None:
        """The kernels, if there are any."""
        return self.parts.library

    @property
    def device(self) -> Device | None:
        """What it is tied to; None before its first run."""
        return self._device

    @property
    def recording(self) -> Recording | None:
        """How it runs; None until it is tied to a device."""
        return self._recording

    @property
    def recipe(self) -> Mapping[str, object]:
        """What the captured graph was lowered with, as JSON."""
        return self.parts.recipe

    def run(self, inputs: Sequence[object]) -> list[object]:
        """Run on flat inputs of the captured shapes; the results share no memory with the program.

        Raises:
            UnsupportedError: There is no GPU that can run it, or an input is on another device.
        """
        with self._lock, torch.no_grad():
            if self._device is None:
                self.tie(self._find_device(inputs))
            assert self._device is not None
            assert self._recording is not None
            _check_devices(inputs, self._device.torch_device)
            with self._running(self._device):
                return self._recording.run(inputs)

    @contextmanager
    def _running(self, device: Device) -> Iterator[None]:
        """Run on a device, torch's own operators in the types of their inputs and in the program's precision."""
        autocast = torch.autocast(device.torch_device.type, enabled=False)
        with device.running(), autocast, float32_precision(self.parts.target.precision):
            yield

    def _forward(self, inputs: Sequence[object]) -> list[object]:
        return [self._own(output) for output in self.graph_module.forward(*inputs)]

    def tie(self, device: Device) -> None:
        """Bring the program to a device.

        Args:
            device: Where it will run from now on.

        Raises:
            UnsupportedError: The device has too little memory.
        """
        place = device.torch_device
        try:
            buffers = tuple(
                torch.zeros(layout.numel, dtype=getattr(torch, layout.cells), device=place)
                for layout in self.parts.buffers
            )
            for step in self.parts.steps:
                _tie_step(step, buffers, device)
            for copy, number in self.parts.copies:
                copy.tie(buffers[number])
            _move_graph(self.graph_module, place)
        except torch.OutOfMemoryError as error:
            size = sum(layout.numel * layout.cell_bytes for layout in self.parts.buffers)
            raise UnsupportedError(
                f"{place} has too little memory for the compiled model: {size} bytes of activations besides its "
                f"weights. Use a smaller batch, or free memory. torch says: {error}"
            ) from error
        self.buffers, self._device, self._recording = buffers, device, Recording(device, self._forward)

    def _find_device(self, inputs: Sequence[object]) -> Device:
        """Return the GPU that the inputs are on."""
        arch = self.parts.target.arch
        try:
            gpu = find_gpu()
        except UnsupportedError as error:
            raise UnsupportedError(
                f"This model was compiled for a GPU ({arch}) and cannot run here: {error} To run it on the CPU, "
                "compile it with target='cpu'."
            ) from error
        found = [value.device for value in inputs if isinstance(value, torch.Tensor) and value.device.type == "cuda"]
        gpu = find_gpu(found[0].index) if found else gpu
        _check_devices(inputs, gpu)
        return Gpu(self.parts.library or CudaLibrary(arch, (), {}), gpu)

    def _own(self, output: object) -> object:
        if isinstance(output, torch.Tensor) and any(_same_memory(output, buffer) for buffer in self.buffers):
            return output.clone(memory_format=torch.contiguous_format)
        return output


def _same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _check_devices(inputs: Sequence[object], device: torch.device) -> None:
    for index, value in enumerate(inputs):
        if isinstance(value, torch.Tensor) and value.device != device:
            raise UnsupportedError(
                f"Input {index} is on {value.device}, the compiled model runs on {device}. Pass x.to({str(device)!r})."
            )


def _tie_step(step: Step, buffers: Sequence[torch.Tensor], device: Device) -> None:
    kernel, place = step.kernel, device.torch_device
    tensors = {name: torch.from_numpy(array).to(place) for name, array in kernel.arrays.items()}
    tensors |= {"X": buffers[step.x], "Y": buffers[step.y]}
    if step.residual is not None:
        tensors["RES"] = buffers[step.residual]
    launch = device.bind(step.function, Grid(kernel.grid, kernel.schedule.threads), tensors)
    layer = step.layer
    step.module.tie(launch, buffer_view(buffers[step.y], kernel.work.y, layer.dims, layer.output_shape))


def _move_graph(gm: fx.GraphModule, device: torch.device) -> None:
    """Bring constants and dense layers to a device, and let operators that make tensors make them there."""
    gm.to(device)
    for module in gm.modules():
        if isinstance(module, DenseLayer):
            module.move(device)

    def moved(value: Argument) -> Argument:
        return device if isinstance(value, torch.device) else value

    for node in gm.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, moved)
        node.kwargs = fx.node.map_aggregate(node.kwargs, moved)
    gm.recompile()
