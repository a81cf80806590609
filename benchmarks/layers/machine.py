"""What the machine can do, as calls that are timed in turns with the layers: multiplying, copying, and starting."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fxprune.codegen.build import Library
from fxprune.codegen.script import Script
from fxprune.codegen.target import CpuTarget

GEMM_SIZES = (192, 256, 320, 384, 512)
"""Sizes of square products, all three matrices together 0.4 to 3 MB: they stay in the L2 caches, or nearly."""


def gemm_call(size: int) -> Callable[[], object]:
    """Return a product of square float32 matrices on torch.

    Args:
        size: Rows, and columns.
    """
    a, b, c = (torch.randn(size, size) for _ in range(3))
    return lambda: torch.mm(a, b, out=c)


def gemm_flops(size: int) -> int:
    """Return the FLOPs of such a product."""
    return 2 * size**3


def copy_call(size_bytes: int) -> Callable[[], object]:
    """Return a copy that reads and writes so many bytes together.

    Args:
        size_bytes: Bytes read plus bytes written.
    """
    source = torch.randn(max(1, size_bytes // 8))
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def launch_call(target: CpuTarget) -> Callable[[], object]:
    """Return a kernel that starts its threads and does nothing else.

    Args:
        target: The CPU.
    """
    script = Script()
    with (
        script.function("empty", {"Y": (target.threads, "float32")}),
        script.block(f"for t in T.parallel({target.threads})"),
    ):
        script.add("Y[t] = T.float32(0)")
    library, y = Library({"empty": script.text}, target), torch.empty(target.threads)
    return lambda: library["empty"](y)
