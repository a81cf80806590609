"""Which GPU the code will run on: its architecture, and the figures that predictions are made with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from fxprune.codegen.workload import CELL_BYTES, CellType
from fxprune.errors import UnsupportedError

Precision = Literal["ieee", "tf32"]
"""What layers of float32 are computed with, in torch's words for its own: float32, or tensor cores in TF32."""


@dataclass(frozen=True)
class CudaTarget:
    """A GPU to compile for.

    Attributes:
        arch: nvcc's name of its architecture, e.g. "sm_90a".
        device: The GPU whose figures these are.
        multiprocessors: Their number.
        lanes: float32 multiply-adds of a multiprocessor in a clock cycle.
        clock_ghz: Boost clock.
        memory_gbps: Gigabytes a second of its memory.
        tensor_gflops: GFLOP/s of its tensor cores, cells of 16 bits, sums in float32.
        mma_share: Share of them that `mma.sync` reaches.
        dense_tensor_gflops: What cuDNN and cuBLAS reach of them.
        precision: What layers of float32 may be computed with.
    """

    arch: str
    device: str
    multiprocessors: int
    lanes: int
    clock_ghz: float
    memory_gbps: float
    tensor_gflops: float
    mma_share: float
    dense_tensor_gflops: float
    precision: Precision = "ieee"

    def peak_gflops(self, cells: CellType) -> float:
        """Return the GFLOP/s for a type of cells: tensor cores for 16 bits and TF32, else the multiply-adders."""
        if self.on_tensor_cores(cells):
            return self.tensor_gflops * self.tensor_share(cells)
        return 2 * self.multiprocessors * self.lanes * self.clock_ghz

    def on_tensor_cores(self, cells: CellType) -> bool:
        """Whether layers of this type may be computed on tensor cores."""
        return cells != "float32" or self.precision == "tf32"

    @staticmethod
    def tensor_share(cells: CellType) -> float:
        """Return the rate of tensor cores for a type of cells, as a share of that for 16 bits."""
        return 2 / CELL_BYTES[cells]

    def ridge(self, cells: CellType) -> float:
        """Return the FLOP a byte of memory traffic below which a layer is bound by memory."""
        return self.peak_gflops(cells) / self.memory_gbps

    @property
    def efficiency(self) -> tuple[tuple[int, float], ...]:
        """Pairs (height of a row group, useful rate of the best kernel over the dense rate); estimated."""
        return EFFICIENCY if self.precision == "ieee" else NARROW_EFFICIENCY

    @property
    def narrow_efficiency(self) -> tuple[tuple[int, float], ...]:
        """The same for layers in 16 bits, on tensor cores; estimated."""
        return NARROW_EFFICIENCY

    @property
    def description(self) -> str:
        """The target for the report."""
        precision = "" if self.precision == "ieee" else f", float32 as {self.precision}"
        return f'{{"arch": "{self.arch}", "kind": "cuda"}}{precision}'


EFFICIENCY = ((1, 0.04), (2, 0.08), (4, 0.16), (8, 0.32), (16, 0.6), (32, 0.95), (64, 1.0))
"""Estimated, not measured: a tile has 8 rows at least, and below 32 rows every activation is used too seldom."""

NARROW_EFFICIENCY = ((1, 0.008), (2, 0.016), (4, 0.032), (8, 0.065), (16, 0.13), (32, 0.25), (64, 0.45), (128, 0.55))
"""Estimated, not measured: below 128 rows the L2 cache cannot bring activations as fast as tensor cores multiply them
(H200: 5.5 TB/s against 600 TFLOP/s dense); from there on `mma.sync` is the limit."""

_DEVICES = (
    CudaTarget("sm_80", "A100", 108, 64, 1.41, 1555, 312e3, 1.0, 240e3),
    CudaTarget("sm_86", "RTX 3090", 82, 128, 1.70, 936, 71e3, 1.0, 55e3),
    CudaTarget("sm_89", "RTX 4090", 128, 128, 2.52, 1008, 165e3, 1.0, 130e3),
    CudaTarget("sm_90a", "H200", 132, 128, 1.98, 4800, 989e3, 0.62, 600e3),
)
"""NVIDIA's data sheets; one GPU stands for all of its architecture. The last two columns are estimates: Hopper's full
rate needs `wgmma`, and dense libraries reach some 60 % of it there, 77 % elsewhere."""

ARCHITECTURES = tuple(device.arch for device in _DEVICES)
"""What kernels are compiled for."""

_KEYS = ("kind", "arch")


def read_cuda_target(wanted: Mapping[str, object], precision: Precision = "ieee") -> CudaTarget:
    """Read a target of kind cuda.

    Args:
        wanted: {"kind": "cuda", "arch": ...}.
        precision: What layers of float32 may be computed with.

    Raises:
        UnsupportedError: The architecture is missing or not supported, or there is another key.
    """
    unknown = sorted(str(key) for key in wanted if key not in _KEYS)
    if unknown:
        raise UnsupportedError(f"target={dict(wanted)!r} has {unknown}; a target of kind 'cuda' has an 'arch' only.")
    found = [device for device in _DEVICES if device.arch == wanted.get("arch")]
    if not found:
        raise UnsupportedError(
            f"target={dict(wanted)!r} names the architecture {wanted.get('arch')!r}; kernels are compiled for "
            f"{', '.join(ARCHITECTURES)}, e.g. target={{'kind': 'cuda', 'arch': 'sm_90a'}} for an H100 or H200."
        )
    return replace(found[0], precision=precision)


def find_arch(capability: tuple[int, int]) -> str:
    """Return the architecture of a GPU by its compute capability.

    Raises:
        UnsupportedError: Kernels are not compiled for it.
    """
    name = f"sm_{capability[0]}{capability[1]}"
    for arch in ARCHITECTURES:
        if arch.removesuffix("a") == name:
            return arch
    raise UnsupportedError(f"This GPU is an {name}; kernels are compiled for {', '.join(ARCHITECTURES)}.")
