"""The CUDA text itself on a CPU: compiled by the C++ compiler, a fiber for each thread of a block."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch

from fxprune.codegen.build import _find_compiler
from fxprune.codegen.cuda.build import CudaSource
from fxprune.codegen.cuda.kernel import CudaKernel

_HEADER = Path(__file__).with_name("emulator.h")
_HELPERS = re.compile(r"__forceinline__ __device__ void fxprune_\w+\(.*?\) \{.*?\n?\}\n", re.DOTALL)
_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(?P<name>\w+)\((?P<args>[^)]*)\) \{')


def _to_cpp(text: str) -> str:
    """Return the source for a C++ compiler: the copies and the barrier are the emulator's."""
    body = text[text.index("#define ushort unsigned short") :].split("#endif", 1)[1]
    body = _HELPERS.sub("", body).replace("__shared__ alignas(64)", "alignas(64) static")
    body = body.replace("__forceinline__ __device__", "static inline")
    entries = "\n".join(_entry(found["name"], found["args"]) for found in _KERNEL.finditer(body))
    defines = "#define uint unsigned int\n#define ushort unsigned short\n#define uchar unsigned char\n"
    return f'#include "{_HEADER}"\n{defines}{body}\n{entries}\n'


def _entry(name: str, arguments: str) -> str:
    """Return a function that runs a kernel on every block."""
    types = [argument.split()[0] for argument in arguments.split(",")]
    passed = ", ".join(f"({kind})arguments[{number}]" for number, kind in enumerate(types))
    call = f"emulate(x, y, threads, [=] {{ {name}({passed}); }});"
    return f'extern "C" void run_{name}(int x, int y, int threads, void **arguments) {{ {call} }}'


class Emulator:
    """The kernels of one source."""

    def __init__(self, source: CudaSource, folder: Path) -> None:
        """Compile.

        Args:
            source: What TVM wrote.
            folder: Where files may be written.
        """
        self._parameters = source.parameters
        text, output = folder / "emulated.cc", folder / "emulated.so"
        text.write_text(_to_cpp(source.text))
        options = ["-O1", "-std=c++17", "-fno-strict-aliasing", "-shared", "-fPIC", "-w"]
        subprocess.run([*_find_compiler(), *options, "-o", str(output), str(text)], check=True)
        self._library = ctypes.CDLL(str(output))

    def run(self, name: str, kernel: CudaKernel, tensors: dict[str, torch.Tensor]) -> None:
        """Launch a kernel; tensors besides its packed arrays by name."""
        constants = {key: torch.from_numpy(array) for key, array in kernel.arrays.items()}
        self.launch(name, kernel.grid, kernel.schedule.threads, constants | tensors)

    def launch(
        self, name: str, blocks: tuple[int, int, int], threads: int, tensors: Mapping[str, torch.Tensor]
    ) -> None:
        """Launch a kernel with all its arguments by name."""
        pointers = [ctypes.c_void_p(tensors[key].data_ptr()) for key in self._parameters[name]]
        arguments = (ctypes.c_void_p * len(pointers))(*pointers)
        getattr(self._library, f"run_{name}_kernel")(blocks[0], blocks[1], threads, arguments)
