"""Random weights and masks on which the rules of refill and regroup are compared."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


def draw_plain(rows: int, channels: int, taps: int, seed: int = 0) -> FloatArray:
    """Absolute values of independent normal weights, [O, n]."""
    return np.abs(np.random.default_rng(seed).normal(size=(rows, channels * taps)))


def draw_structured(rows: int, channels: int, taps: int, seed: int = 0) -> FloatArray:
    """The same with log-normal factors for input channels, taps, rows and eight hidden families of rows."""
    generator = np.random.default_rng(seed)
    weights = generator.normal(size=(rows, channels, taps))
    weights *= np.exp(0.5 * generator.normal(size=(1, channels, 1)))
    weights *= np.exp(0.25 * generator.normal(size=(1, 1, taps)))
    weights *= np.exp(0.4 * generator.normal(size=(rows, 1, 1)))
    weights *= np.exp(0.5 * generator.normal(size=(8, channels, taps)))[generator.integers(0, 8, rows)]
    return np.abs(weights.reshape(rows, -1))


def keep_largest(weights: FloatArray, density: float) -> BoolArray:
    """The mask of the largest weights of a layer."""
    kept: BoolArray = weights >= np.quantile(weights, 1 - density)
    return kept
