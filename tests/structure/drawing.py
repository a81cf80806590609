"""Masks of the families that follow-up works use, each of 64 outputs, 32 inputs and 3x3 taps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from tests.structure.masks import BoolArray

ROWS, CHANNELS, TAPS = 64, 32, 9
COLUMNS = CHANNELS * TAPS


def _groups(generator: Generator, height: int, draw_columns: Callable[[], BoolArray]) -> BoolArray:
    """Row groups of one height, rows shuffled."""
    mask: BoolArray = np.repeat([draw_columns() for _ in range(ROWS // height)], height, axis=0)
    return mask[generator.permutation(ROWS)]


def _some(generator: Generator, size: int, count: int) -> BoolArray:
    kept = np.zeros(size, dtype=np.bool_)
    kept[generator.permutation(size)[:count]] = True
    return kept


def _kernel_wise(generator: Generator) -> BoolArray:
    return _groups(generator, 16, lambda: np.repeat(_some(generator, CHANNELS, 7), TAPS))


def _shuffled_blocks(generator: Generator) -> BoolArray:
    return _groups(generator, 16, lambda: _some(generator, COLUMNS, 64))


def _column_vectors(generator: Generator) -> BoolArray:
    return _groups(generator, 8, lambda: _some(generator, COLUMNS, int(generator.integers(50, 70))))


def _two_of_four(generator: Generator) -> BoolArray:
    return np.concatenate([_some(generator, 4, 2) for _ in range(ROWS * COLUMNS // 4)]).reshape(ROWS, COLUMNS)


def _two_of_four_channels(generator: Generator) -> BoolArray:
    runs = np.concatenate([_some(generator, 4, 2) for _ in range(ROWS * COLUMNS // 4)])
    return runs.reshape(ROWS, TAPS, CHANNELS).transpose(0, 2, 1).reshape(ROWS, COLUMNS)


def _complementary(generator: Generator) -> BoolArray:
    chosen = generator.integers(0, 8, (ROWS, COLUMNS // 8))
    mask: BoolArray = (np.arange(8)[None, :, None] == chosen[:, None, :]).reshape(ROWS, COLUMNS)
    return mask


def _constant_fan_in(generator: Generator) -> BoolArray:
    mask = np.stack([_some(generator, COLUMNS, 29) for _ in range(ROWS)])
    mask[generator.permutation(ROWS)[:10]] = False
    return mask


def _channels(generator: Generator) -> BoolArray:
    mask = np.zeros((ROWS, COLUMNS), dtype=np.bool_)
    mask[np.ix_(_some(generator, ROWS, 24), np.repeat(_some(generator, CHANNELS, 12), TAPS))] = True
    return mask


def _chase(generator: Generator) -> BoolArray:
    mask = generator.random((ROWS, COLUMNS)) < 0.1
    mask[generator.permutation(ROWS)[:40]] = False
    return mask


_DRAW: dict[str, Callable[[Generator], BoolArray]] = {
    "kernel-wise blocks": _kernel_wise,
    "shuffled blocks": _shuffled_blocks,
    "column vectors": _column_vectors,
    "N:M": _two_of_four,
    "N:M along input channels": _two_of_four_channels,
    "complementary": _complementary,
    "constant fan-in": _constant_fan_in,
    "pure channels": _channels,
    "channels and the rest": _chase,
}

FAMILIES = {
    "kernel-wise blocks": "row groups of whole kernels: 4 of 16 rows, 63 of 288",
    "shuffled blocks": "row groups of 16x16 blocks, shuffled: 4 of 16 rows, 64 of 288",
    "column vectors": "row groups of column vectors: 8 of 8 rows",
    "N:M": "2:4 along the columns",
    "N:M along input channels": "2:4 along the input channels",
    "complementary": "complementary: one of 8 at a distance of 36 columns",
    "constant fan-in": "constant fan-in: 29 of 288 columns in each row, 10 of 64 rows dead",
    "pure channels": "channels: 24 of 64 outputs and 12 of 32 inputs, dense",
    "channels and the rest": "unstructured, density 0.11 between 24 of 64 outputs",
}
"""Name of a family -> how its sentence begins."""


def draw(name: str, seed: int = 0) -> BoolArray:
    """Draw a mask of one family, [O, n]."""
    mask: BoolArray = _DRAW[name](np.random.default_rng(seed))
    return mask
