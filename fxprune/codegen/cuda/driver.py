"""NVIDIA's driver by ctypes: machine code into a GPU, launches on torch's stream. No TVM, no CUDA toolkit."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fxprune.codegen.cuda.nvcc import DeviceCode
from fxprune.errors import UnsupportedError

_LIBRARY = "libcuda.so.1"
_TOO_OLD = (209, 218, 222)
"""CUDA's errors for machine code of another architecture, and for code newer than the driver."""


@dataclass(frozen=True)
class Grid:
    """How a kernel is started.

    Attributes:
        blocks: Thread blocks on each axis.
        threads: Threads of a thread block.
    """

    blocks: tuple[int, int, int]
    threads: int


class Driver:
    """The driver, and the context that torch uses on one device."""

    def __init__(self, ordinal: int, path: str = _LIBRARY) -> None:
        """Load the driver.

        Args:
            ordinal: The device's number.
            path: The driver's library.

        Raises:
            UnsupportedError: There is no driver, or it finds no such device.
        """
        try:
            self._cuda = ctypes.CDLL(path)
        except OSError as error:
            raise UnsupportedError(
                f"NVIDIA's driver cannot be loaded: {error}. Run the model on a machine with a GPU and its driver."
            ) from error
        self._check(self._cuda.cuInit(0), "start the driver")
        device = ctypes.c_int()
        self._check(self._cuda.cuDeviceGet(ctypes.byref(device), ordinal), f"find device {ordinal}")
        self._context = ctypes.c_void_p()
        retain = self._cuda.cuDevicePrimaryCtxRetain
        self._check(retain(ctypes.byref(self._context), device), "open the device's context")

    @property
    def version(self) -> tuple[int, int]:
        """The newest CUDA that the driver knows."""
        found = ctypes.c_int()
        self._check(self._cuda.cuDriverGetVersion(ctypes.byref(found)), "ask for its version")
        return found.value // 1000, found.value % 1000 // 10

    def make_current(self) -> None:
        """Use the device's context in this thread."""
        self._check(self._cuda.cuCtxSetCurrent(self._context), "use the device's context")

    def load(self, code: DeviceCode) -> ctypes.c_void_p:
        """Bring machine code to the device.

        Raises:
            UnsupportedError: The driver is older than the code, or the code is for another architecture.
        """
        if self.version[0] < code.toolkit[0]:
            raise UnsupportedError(
                f"The driver knows CUDA {_dotted(self.version)}, and the kernels were compiled with CUDA "
                f"{_dotted(code.toolkit)}. Update the driver, or compile with a CUDA {self.version[0]} toolkit."
            )
        self.make_current()
        module = ctypes.c_void_p()
        result = self._cuda.cuModuleLoadData(ctypes.byref(module), code.cubin)
        if result in _TOO_OLD:
            raise UnsupportedError(
                f"The GPU refuses machine code for {code.arch}: {self._name(result)}. Compile for its architecture, or "
                "update the driver."
            )
        self._check(result, f"load machine code for {code.arch}")
        return module

    def bind(
        self, module: ctypes.c_void_p, symbol: str, grid: Grid, tensors: Sequence[torch.Tensor]
    ) -> Callable[[int], None]:
        """Return a call that launches a kernel on a stream.

        Args:
            module: What `load` returned.
            symbol: The kernel's name.
            grid: How it is started.
            tensors: Its arguments in order; they are kept alive.
        """
        function = ctypes.c_void_p()
        found = self._cuda.cuModuleGetFunction(ctypes.byref(function), module, symbol.encode())
        self._check(found, f"find the kernel {symbol}")
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
        arguments = (ctypes.c_void_p * len(pointers))(*(ctypes.addressof(pointer) for pointer in pointers))
        start, check, kept = self._cuda.cuLaunchKernel, self._check, (pointers, tuple(tensors))

        def launch(stream: int, _kept: object = kept) -> None:
            shape = (*grid.blocks, grid.threads, 1, 1, 0)
            check(start(function, *shape, ctypes.c_void_p(stream), arguments, None), f"launch the kernel {symbol}")

        return launch

    def _check(self, result: int, what: str) -> None:
        if result:
            raise UnsupportedError(f"NVIDIA's driver cannot {what}: {self._name(result)}.")

    def _name(self, result: int) -> str:
        name = ctypes.c_char_p()
        self._cuda.cuGetErrorName(result, ctypes.byref(name))
        return f"{name.value.decode() if name.value else 'unknown error'} ({result})"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
