"""Which rows refill keeps: by hand, against the paper's tables, and its promises on random masks."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from fxprune.structure.cells import Cells
from fxprune.structure.refill import RefillRule, count_rows, refill_layers, refill_rows
from tests.structure.masks import draw_plain, keep_largest

PARITY = RefillRule(parity=True)
RESNET18 = [
    *[(64, 64, 9)] * 4,
    (128, 64, 9),
    *[(128, 128, 9)] * 3,
    (128, 64, 1),
    (256, 128, 9),
    *[(256, 256, 9)] * 3,
    (256, 128, 1),
    (512, 256, 9),
    *[(512, 512, 9)] * 3,
    (512, 256, 1),
]
"""Rows, input channels and taps of all convolutions but the stem."""

# A 6 x 8 layer, weights by hand; kept cells have a weight, pruned ones none. Row sums: 9, 3, 9, 0, 12, 1.
HAND = np.array(
    [
        [4, 0, 0, 5, 0, 0, 0, 0],
        [0, 3, 0, 0, 0, 0, 0, 0],
        [2, 2, 2, 3, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 6, 0, 0, 6, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 1],
    ],
    dtype=np.float64,
)


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (RefillRule(), [4]),  # 10 cells / 8 columns = 1.25 -> 1 row
        (PARITY, [0, 4]),  # floor(1.25) + 1 = 2 rows; rows 0 and 2 tie, the lower one wins
        (RefillRule(rate=0.2), [0, 4]),  # 1.25 + 0.2 * 4.75 = 2.2 -> 2 rows
        (RefillRule(rate=0.2, parity=True), [0, 2, 4]),
        (RefillRule(multiple=4), [0, 1, 2, 4]),
        (RefillRule(multiple=32), [0, 1, 2, 3, 4, 5]),
    ],
)
def test_by_hand(rule: RefillRule, kept: list[int]) -> None:
    assert np.flatnonzero(refill_rows([HAND > 0], [HAND], rule)).tolist() == kept


def test_only_kept_cells_count() -> None:
    scores = HAND.copy()
    scores[3] = 100.0  # pruned, whatever its weight
    assert np.flatnonzero(refill_rows([HAND > 0], [scores], RefillRule())).tolist() == [4]


def test_rows_can_have_scores_of_their_own() -> None:
    scores = np.array([1.0, 2, 3, 9, 4, 5])
    assert np.flatnonzero(refill_rows([HAND > 0], [scores], PARITY)).tolist() == [3, 5]


def test_coupled_layers_keep_the_same_rows() -> None:
    other = np.zeros((6, 2))
    other[1] = 30.0
    first, second, alone = refill_layers(
        [Cells(HAND > 0, HAND), Cells(other > 0, other), Cells(HAND > 0, HAND)], PARITY, [[0, 1]]
    )
    assert np.flatnonzero(first.mask.all(axis=1)).tolist() == [1, 4]  # 12 cells / 10 columns -> 2 rows; 33 and 12
    assert np.flatnonzero(second.mask.all(axis=1)).tolist() == [1, 4]
    assert np.flatnonzero(alone.mask.all(axis=1)).tolist() == [0, 4]


def test_coupled_layers_need_equal_rows() -> None:
    with pytest.raises(ValueError, match=r"have \[5, 6\] rows"):
        refill_rows([HAND > 0, HAND[:5] > 0], [HAND, HAND[:5]], RefillRule())


def refilled_density(rule: RefillRule, density: float) -> float:
    """Density of ResNet-18 refilled at one density everywhere."""
    kept = sum(
        count_rows(round(density * rows * channels * taps), rows, channels * taps, rule) * channels * taps
        for rows, channels, taps in RESNET18
    )
    return kept / sum(rows * channels * taps for rows, channels, taps in RESNET18)


@pytest.mark.parametrize(("round_", "published"), [(1, 80.29), (2, 64.49), (3, 51.43), (4, 41.24), (5, 32.97)])
def test_parity_gives_the_densities_of_table_a3(round_: int, published: float) -> None:
    assert 100 * refilled_density(PARITY, 0.8**round_) == pytest.approx(published, abs=0.5)


def test_refill_plus_gives_the_density_of_table_a2() -> None:
    assert 100 * refilled_density(RefillRule(rate=0.2), 0.3284) == pytest.approx(46.41, abs=0.2)


@pytest.mark.parametrize("round_", [1, 3, 5, 7, 10])
def test_parity_keeps_floor_plus_one_rows(round_: int) -> None:
    weights = draw_plain(64, 32, 9)
    mask = keep_largest(weights, 0.8**round_)
    assert refill_rows([mask], [weights], PARITY).sum() == int(mask.sum()) // 288 + 1


@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 30),
    density=st.floats(0, 1),
    rate=st.floats(0, 1),
    parity=st.booleans(),
    multiple=st.integers(1, 9),
    seed=st.integers(0, 999),
)
def test_promises(rows: int, columns: int, density: float, rate: float, parity: bool, multiple: int, seed: int) -> None:
    weights = draw_plain(rows, columns, 1, seed)
    mask = np.random.default_rng(seed).random((rows, columns)) < density
    rule = RefillRule(rate, parity, multiple)
    kept = refill_rows([mask], [weights], rule)
    assert 1 <= kept.sum() <= rows
    assert kept.sum() % multiple == 0 or kept.all()
    sums = np.where(mask, weights, 0).sum(axis=1)
    assert kept.all() or sums[kept].min() >= sums[~kept].max(), "a stronger row was dropped"
    (changed,) = refill_layers([Cells(mask, weights)], rule)
    assert np.array_equal(changed.mask.all(axis=1), changed.mask.any(axis=1)), "a row is half kept"
    if not parity and rate == 0 and multiple == 1:
        (again,) = refill_layers([Cells(changed.mask, weights)], rule)
        assert np.array_equal(again.mask, changed.mask)


@pytest.mark.parametrize(("rate", "multiple"), [(-0.1, 1), (1.1, 1), (float("nan"), 1), (0.0, 0)])
def test_rule_out_of_range(rate: float, multiple: int) -> None:
    with pytest.raises(ValueError, match="needs to be"):
        RefillRule(rate=rate, multiple=multiple)
