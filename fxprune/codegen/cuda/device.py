"""Where the kernels of a program run: a GPU here, the kernels' twins in the tests."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

from fxprune.codegen.cuda.build import CudaLibrary
from fxprune.codegen.cuda.driver import Driver, Grid
from fxprune.codegen.cuda.target import find_arch
from fxprune.codegen.cuda.timing import time_interleaved
from fxprune.errors import UnsupportedError


class Device(Protocol):
    """What a program needs of the place it runs on."""

    @property
    def torch_device(self) -> torch.device:
        """Where its tensors lie."""

    @property
    def name(self) -> str:
        """Its name for reports and records."""

    def time(self, calls: Mapping[str, Callable[[], object]]) -> Mapping[str, float]:
        """Return the median microseconds of each call, timed in turns.

        Args:
            calls: What to time, by name.
        """

    def bind(self, name: str, grid: Grid, tensors: Mapping[str, torch.Tensor]) -> Callable[[], None]:
        """Return a call of a kernel.

        Args:
            name: The kernel, by the name of its script.
            grid: How it is started.
            tensors: Its arguments by name.
        """

    def running(self) -> AbstractContextManager[None]:
        """Return what a run of the program happens within."""

    def is_recording(self) -> bool:
        """Whether what is launched now is recorded and does not run."""

    def record(self, run: Callable[[], list[object]]) -> tuple[Callable[[], None], list[object]]:
        """Record what a call launches.

        Args:
            run: What to record.

        Returns:
            A call that does all of it again, and the results of the recorded call: they lie where every replay
            writes its own.

        Raises:
            UnsupportedError: It cannot be recorded.
        """


def find_gpu(index: int | None = None) -> torch.device:
    """Return a GPU of this machine.

    Args:
        index: Its number; None = the current one.

    Raises:
        UnsupportedError: There is none that torch can use.
    """
    if torch.version.cuda is None:
        raise UnsupportedError("This torch was built without CUDA; install one with CUDA to run on a GPU.")
    if not torch.cuda.is_available():
        raise UnsupportedError("torch finds no GPU on this machine, or the driver is too old for it.")
    return torch.device("cuda", torch.cuda.current_device() if index is None else index)


class Gpu:
    """A GPU with the kernels of one program."""

    def __init__(self, library: CudaLibrary, device: torch.device) -> None:
        """Load the kernels.

        Args:
            library: The kernels.
            device: A CUDA device.

        Raises:
            UnsupportedError: They are for another architecture or a newer driver.
        """
        capability = torch.cuda.get_device_capability(device)
        if library.parts and not _can_run(library.arch, capability):
            raise UnsupportedError(
                f"The kernels were compiled for {library.arch}, and {torch.cuda.get_device_name(device)} is an "
                f"{_architecture(capability)}. Compile again for that architecture."
            )
        self.torch_device = device
        self._driver = Driver(device.index or 0)
        self._modules: list[ctypes.c_void_p] = [self._driver.load(code) for code in library.parts]
        self._functions = library.functions
        self._last: tuple[torch.cuda.Stream, torch.cuda.Event] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Use the device in this thread; a run on another stream than the one before waits for it: they share buffers.

        While torch captures a CUDA graph nothing waits; a graph replays on one stream.
        """
        with torch.cuda.device(self.torch_device):
            self._driver.make_current()
            stream, captured = torch.cuda.current_stream(), torch.cuda.is_current_stream_capturing()
            if self._last is not None and self._last[0] != stream and not captured:
                stream.wait_event(self._last[1])
            yield
            if not captured:
                self._last = stream, stream.record_event()

    @property
    def name(self) -> str:
        """The GPU's name, as the driver says."""
        return torch.cuda.get_device_name(self.torch_device)

    def time(self, calls: Mapping[str, Callable[[], object]]) -> Mapping[str, float]:
        """Return the median microseconds of each call by CUDA events."""
        with torch.cuda.device(self.torch_device):
            return time_interleaved(calls)

    def is_recording(self) -> bool:
        """Whether torch captures a CUDA graph on the current stream."""
        return torch.cuda.is_current_stream_capturing()

    def record(self, run: Callable[[], list[object]]) -> tuple[Callable[[], None], list[object]]:
        """Capture a CUDA graph; what other threads do on the device meanwhile does not disturb it.

        Raises:
            UnsupportedError: The call does what no graph can hold.
        """
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call]
        try:
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                outputs = run()
        except RuntimeError as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise UnsupportedError(f"the run cannot be captured as a CUDA graph: {first}") from error
        return graph.replay, outputs

    def bind(self, name: str, grid: Grid, tensors: Mapping[str, torch.Tensor]) -> Callable[[], None]:
        """Return a call that launches a kernel on torch's current stream."""
        function, device = self._functions[name], self.torch_device
        ordered = [tensors[parameter] for parameter in function.parameters]
        launch = self._driver.bind(self._modules[function.part], function.symbol, grid, ordered)
        return lambda: launch(torch.cuda.current_stream(device).cuda_stream)


def _can_run(arch: str, capability: tuple[int, int]) -> bool:
    """Whether a GPU runs machine code: of its major architecture, no newer; of exactly its own if that ends in "a"."""
    number = arch.removeprefix("sm_").removesuffix("a")
    major, minor = int(number[:-1]), int(number[-1])
    if arch.endswith("a"):
        return (major, minor) == capability
    return major == capability[0] and minor <= capability[1]


def _architecture(capability: tuple[int, int]) -> str:
    try:
        return find_arch(capability)
    except UnsupportedError:
        return f"sm_{capability[0]}{capability[1]}"
