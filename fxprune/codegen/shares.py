"""How the units of a kernel, tiles of blocks, are shared by its threads."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fxprune.annotation import IndexArray
from fxprune.codegen.format import PackedWeight

Split = Literal["pixels", "blocks"]
"""What threads share: tiles of pixels, or blocks of rows."""


def list_units(length: IndexArray, widths: IndexArray, split: Split) -> NDArray[np.integer]:
    """Return what every unit takes: tile-major where the threads share pixels, block-major where blocks.

    Args:
        length: What a block takes for a tile of width 1, [blocks].
        widths: Width of every tile, [tiles].
        split: What the threads share.
    """
    return np.outer(widths, length).ravel() if split == "pixels" else np.outer(length, widths).ravel()


def cut_units(packed: PackedWeight, widths: IndexArray, threads: int, split: Split) -> IndexArray:
    """Split the units so that every thread multiplies about as many cells, [threads + 1]."""
    cost = np.cumsum(list_units(packed.over_parts(packed.length) + 1, widths, split), dtype=np.int64)
    wanted = cost[-1] * np.arange(1, threads) / threads
    inner = np.searchsorted(cost, wanted)
    return np.concatenate(([0], inner, [cost.size])).astype(np.int32)
