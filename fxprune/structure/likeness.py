"""An order of rows in which like rows stand together, by their scores.

Complete linkage on the cosine distance. The scores become small integers first, so every product and sum is exact in
float64, and the order is the same on every machine and with any number of threads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

EXACT_BITS = 53
"""Integers below 2**53 are exact in float64."""

MOST_BITS = 16
"""Bits of a score that are compared; the order of rows does not need more."""

COMPARE_MACS = 2e10
"""Multiply-adds spent on comparing the rows of one layer (0.5 s on one core); beyond, columns are sampled."""


def round_scores(scores: FloatArray, bits: int) -> FloatArray:
    """Return scores as whole numbers, the largest of them 2**bits; all-zero scores stay zero."""
    largest = float(scores.max(initial=0.0))
    if largest <= 0.0:
        return np.zeros_like(scores)
    whole: FloatArray = np.rint(scores * (2.0**bits / largest))
    return whole


def order_rows(scores: FloatArray) -> IntArray:
    """Order rows as the leaves of a complete-linkage tree on cosine distance.

    Args:
        scores: Score of each cell, at least 0, 0 where pruned, [R, n].

    Returns:
        A permutation of the rows, [R].
    """
    rows, columns = scores.shape
    if rows < 2 or columns == 0:
        return np.arange(rows)
    step = max(1, int(np.ceil(columns * rows**2 / COMPARE_MACS)))
    sample = scores[:, ::step]
    bits = min(MOST_BITS, (EXACT_BITS - sample.shape[1].bit_length()) // 2)
    whole = round_scores(sample, bits)
    products = whole @ whole.T
    norms = np.sqrt(products.diagonal())
    norms[norms == 0] = 1.0  # an empty row is at distance 1 from every other
    distance = np.maximum(0.0, 1.0 - products / norms[:, None] / norms[None, :])
    np.fill_diagonal(distance, 0.0)
    distance = np.minimum(distance, distance.T)  # the two divisions may round differently
    leaves: IntArray = leaves_list(linkage(squareform(distance, checks=False), "complete")).astype(np.int64)
    return leaves
