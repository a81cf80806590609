"""Weights for tensor cores: every thread of a warp finds its cells of a product as 16 neighbouring bytes.

    [columns, rows] of a block    becomes    [columns / step][rows / 16][thread][register][cell]

with steps of 16 columns and 2 cells of 16 bits in a register, or of 8 columns and 1 cell in TF32, and the registers of
`products`: of a block's step one warp reads 512 neighbouring bytes for each 16 rows.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fxprune.codegen.cuda.products import ROWS
from fxprune.codegen.format import Float32Array
from fxprune.codegen.workload import CELL_BYTES, CellType

_TYPES: dict[CellType, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}

_WORD_BYTES = 4
"""A register."""

_CUT_BITS = 13
"""Bits of a float32's fraction that TF32 has not."""


def cells_a_word(cells: CellType) -> int:
    """Return the cells in a register."""
    return _WORD_BYTES // CELL_BYTES[cells]


def order_fragments(values: Float32Array, height: int, cells: CellType) -> NDArray[np.int32]:
    """Return the weights of blocks one after another in the order of the tensor cores.

    Args:
        values: Blocks of [columns, height], columns a multiple of a product's; rounded to the nearest cell.
        height: Rows of a block, a multiple of 16.
        cells: Their type on the GPU; float32 is rounded to TF32.

    Returns:
        One word a register, [values / cells of a word]; only its bits mean something.
    """
    # Column (far * 4 + q) * word + e, row 8 * lower + g; see `products`.
    word = cells_a_word(cells)
    split = values.reshape(-1, 2, 4, word, height // ROWS, 2, ROWS // 2)
    ordered = np.ascontiguousarray(split.transpose(0, 4, 6, 2, 1, 5, 3)).reshape(-1)
    if cells == "float32":
        return round_tf32(ordered).view(np.int32)
    rounded = torch.from_numpy(ordered).to(_TYPES[cells]).view(torch.int16)
    return rounded.numpy().view(np.int32)


def round_tf32(values: Float32Array) -> Float32Array:
    """Return float32 rounded to the nearest TF32, ties away from zero, as PTX's `cvt.rna.tf32.f32` does.

    Args:
        values: Any shape; what is not finite stays as it is.
    """
    bits = values.view(np.uint32)
    half, kept = np.uint32(1 << (_CUT_BITS - 1)), np.uint32(0xFFFFFFFF << _CUT_BITS & 0xFFFFFFFF)
    rounded = ((bits + half) & kept).view(np.float32)
    return np.where(np.isfinite(values), rounded, values)
