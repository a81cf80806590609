"""Matrices of minimal filtering: exact, and as accurate in float32 as they say."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxprune.codegen.minimal_filtering import MOST_PRODUCTS, Matrix, minimal_filtering

SIZES = [(m, r) for r in range(2, 7) for m in range(2, MOST_PRODUCTS - r + 2)]


def _times(matrix: Matrix, vector: list[Fraction]) -> list[Fraction]:
    return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]


@given(st.sampled_from(SIZES), st.data())
def test_the_matrices_are_exact(size: tuple[int, int], data: st.DataObject) -> None:
    outputs, taps = size
    found, numbers = minimal_filtering(outputs, taps), st.integers(-9, 9).map(Fraction)
    products = outputs + taps - 1
    weights = data.draw(st.lists(numbers, min_size=taps, max_size=taps))
    samples = data.draw(st.lists(numbers, min_size=products, max_size=products))
    left, right = _times(found.taps, weights), _times(found.samples, samples)
    summed = _times(found.outputs, [one * other for one, other in zip(left, right, strict=True)])
    assert summed == [sum(weights[k] * samples[i + k] for k in range(taps)) for i in range(outputs)]


@pytest.mark.parametrize(("outputs", "taps"), SIZES)
def test_a_filter_of_one_tap_less_needs_no_last_product(outputs: int, taps: int) -> None:
    found = minimal_filtering(outputs, taps)
    assert found.taps[-1][:-1] == (0,) * (taps - 1)
    assert all(row[-1] == 0 for row in found.samples[:-1]), "and none of the others reads the last sample"


@pytest.mark.parametrize(("outputs", "taps"), SIZES)
def test_float32_loses_little(outputs: int, taps: int) -> None:
    found, generator = minimal_filtering(outputs, taps), np.random.default_rng(0)
    samples = generator.standard_normal((256, 500, outputs + taps - 1))
    weights = generator.standard_normal((256, 1, taps))
    a, g, b = (np.array(matrix, dtype=np.float64) for matrix in (found.outputs, found.taps, found.samples))
    products = (weights @ g.T).astype(np.float32) * (samples.astype(np.float32) @ b.T.astype(np.float32))
    fast = products.sum(0, dtype=np.float32) @ a.T.astype(np.float32)
    exact = np.stack([(weights * samples[..., i : i + taps]).sum((0, 2)) for i in range(outputs)], 1)
    assert np.abs(fast - exact).max() <= 5e-6 * np.abs(exact).max()


def test_too_many_products_are_refused() -> None:
    with pytest.raises(ValueError, match=r"F\(6, 3\) takes 8 products"):
        minimal_filtering(6, 3)
