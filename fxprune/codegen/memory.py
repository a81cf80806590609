"""Buffers on large pages: a kernel reads many short runs far apart, and each small page costs an address look-up."""

from __future__ import annotations

import ctypes
import gc
import mmap

import torch

_PAGE_BYTES = 2**21
"""A large page, 2 MB on x86-64 and on aarch64 with 4 kB pages."""

_LINE_CELLS = 16
"""4-byte cells of a cache line; every piece of a pool begins on one."""


class Pool:
    """One zeroed allocation, handed out piece by piece; it lives as long as its pieces."""

    def __init__(self, cells: int) -> None:
        """Allocate.

        Args:
            cells: 4-byte cells over all pieces, each rounded up to whole cache lines (`rounded`).
        """
        size = -(-max(1, cells) * 4 // _PAGE_BYTES) * _PAGE_BYTES
        memory = mmap.mmap(-1, size + _PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        whole = torch.frombuffer(memory, dtype=torch.float32)
        shift = -whole.data_ptr() % _PAGE_BYTES // 4
        self.cells = whole[shift : shift + size // 4]
        self._used = 0

    def take(self, cells: int) -> torch.Tensor:
        """Return the next piece, float32, flat."""
        piece = self.cells[self._used : self._used + cells]
        if piece.numel() != cells:
            raise ValueError(f"the pool has {self.cells.numel() - self._used} cells left, {cells} were asked for")
        self._used += rounded(cells)
        return piece

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy of a float32 or int32 tensor in the pool."""
        piece = self.take(tensor.numel()).view(tensor.dtype)
        return piece.copy_(tensor)


def rounded(cells: int) -> int:
    """Round cells up to whole cache lines."""
    return -(-cells // _LINE_CELLS) * _LINE_CELLS


def release_unused() -> None:
    """Give memory back to the system after a compilation: graphs are cycles, and glibc keeps what was freed."""
    gc.collect()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
