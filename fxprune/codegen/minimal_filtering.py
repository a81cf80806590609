"""Matrices of minimal filtering, F(m, r): m outputs of an r-tap filter with m + r - 1 multiplications instead of m * r.

    outputs = A ((G taps) * (B samples))

The polynomials are taken at distinct points and at infinity (Toom-Cook, transposed). All entries are exact fractions;
those of A and B are small powers of two and sums of them, so that float32 loses little.
Source: `Winograd, Arithmetic Complexity of Computations, 1980`; `Lavin and Gray, Fast Algorithms for Convolutional
Neural Networks, CVPR 2016`; which points lose least: `Barabasz et al., Error Analysis and Improving the Accuracy of
Winograd Convolution for Deep Neural Networks, 2020`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from fractions import Fraction

_POINTS = tuple(map(Fraction, ("0", "1", "-1", "1/2", "-2", "2", "-1/2")))
"""Where polynomials are taken besides infinity, the first ones of a filter that needs fewer."""

MOST_PRODUCTS = len(_POINTS)
"""Products, m + r - 1, up to which float32 stays within twice the error of the plain sum."""

Matrix = tuple[tuple[Fraction, ...], ...]


@dataclass(frozen=True)
class Filtering:
    """F(m, r) with n = m + r - 1 products; the last one stands for infinity.

    A filter of r - 1 taps, its last tap zero, needs no product for infinity, which leaves the others as they are.

    Attributes:
        outputs: A, [m, n].
        taps: G, [n, r].
        samples: B, [n, n].
    """

    outputs: Matrix
    taps: Matrix
    samples: Matrix


@functools.cache
def minimal_filtering(outputs: int, taps: int) -> Filtering:
    """Return the matrices of F(outputs, taps).

    Args:
        outputs: Outputs computed at once, m, at least 2.
        taps: Taps of the filter, r, at least 2.

    Raises:
        ValueError: There are more than `MOST_PRODUCTS` products.
    """
    products = outputs + taps - 1
    if products > MOST_PRODUCTS:
        raise ValueError(f"F({outputs}, {taps}) takes {products} products; at most {MOST_PRODUCTS} are exact enough")
    points, powers = _POINTS[: products - 1], range(taps)
    rows = [_expand([other for other in points if other != point]) for point in points]
    scales = [_product([point - other for other in points if other != point]) for point in points]
    scaled = [tuple(point**power / scale for power in powers) for point, scale in zip(points, scales, strict=True)]
    return Filtering(
        outputs=tuple((*(point**i for point in points), Fraction(i == outputs - 1)) for i in range(outputs)),
        taps=(*scaled, tuple(Fraction(power == taps - 1) for power in powers)),
        samples=(*((*row, Fraction(0)) for row in rows), _expand(points)),
    )


def _product(factors: list[Fraction]) -> Fraction:
    return functools.reduce(lambda one, other: one * other, factors, Fraction(1))


def _expand(roots: list[Fraction] | tuple[Fraction, ...]) -> tuple[Fraction, ...]:
    """Return the coefficients of the product of all (x - root), the constant one first."""
    found = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *found], [*(-root * one for one in found), Fraction(0)]
        found = [one + other for one, other in zip(shifted, scaled, strict=True)]
    return tuple(found)
