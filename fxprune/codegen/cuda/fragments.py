"""Weights for tensor cores: every thread of a warp finds its cells of a 16 x 16 block as 16 neighbouring bytes.

    [columns, rows] of a block    becomes    [columns / 16][rows / 16][thread][register][2]

with the registers of `products`: of a block's step one warp reads 512 neighbouring bytes for each 16 rows and columns.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fxprune.codegen.cuda.products import ROWS, STEP
from fxprune.codegen.format import Float32Array
from fxprune.codegen.workload import CellType

_TYPES: dict[CellType, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}

CELLS_A_WORD = 2
"""Cells of 16 bits in a register."""


def order_fragments(values: Float32Array, height: int, cells: CellType) -> NDArray[np.int32]:
    """Return the weights of blocks one after another in the order of the tensor cores.

    Args:
        values: Blocks of [columns, height], columns a multiple of 16; rounded to the nearest cell.
        height: Rows of a block, a multiple of 16.
        cells: Their type on the GPU.

    Returns:
        One word a register, [values / 2]; only its bits mean something.
    """
    # Column 8 * far + 2 * q + e, row 8 * lower + g; see `products`.
    split = values.reshape(-1, 2, STEP // 4, 2, height // ROWS, 2, ROWS // 2)
    ordered = np.ascontiguousarray(split.transpose(0, 4, 6, 2, 1, 5, 3))
    rounded = torch.from_numpy(ordered.reshape(-1)).to(_TYPES[cells]).view(torch.int16)
    return rounded.numpy().view(np.int32)
