"""Row groups under a budget: shares as measured before, promises on random masks, the same bits everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from fxprune.structure.likeness import order_rows, round_scores
from fxprune.structure.paper import PaperRule, regroup_paper
from fxprune.structure.vectors import Grouping, Sheet, capture, find_vectors, make_exact, select_once
from tests.structure.masks import FloatArray, draw_plain, draw_structured, keep_largest


def group(
    weights: FloatArray, density: float, stored: float, height: int, unit: int = 1, tile: int = 8
) -> tuple[float, Grouping]:
    """Share of the kept |w| that the groups hold, and the groups."""
    scores = weights * keep_largest(weights, density)
    (exact,) = make_exact([scores])
    sheet = Sheet(exact, order_rows(exact), unit, tile)
    budget = int(stored * scores.size)
    (found,) = find_vectors([sheet], [height], budget, iterations=15, tolerance=1e-6)
    return float(scores[found.kept[found.labels]].sum() / scores.sum()), found


@pytest.mark.parametrize(
    ("density", "stored", "height", "share"),
    [(0.33, 0.32, 16, 0.471), (0.33, 0.32, 32, 0.426), (0.107, 0.14, 16, 0.341), (0.107, 0.14, 32, 0.279)],
)
def test_shares_on_unstructured_weights(density: float, stored: float, height: int, share: float) -> None:
    assert group(draw_plain(256, 128, 9), density, stored, height)[0] == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("draw", [draw_plain, draw_structured])
@pytest.mark.parametrize("density", [0.33, 0.107])
def test_more_than_the_papers_rule_at_equal_storage(draw: object, density: float) -> None:
    weights = draw_plain(256, 128, 9) if draw is draw_plain else draw_structured(256, 128, 9)
    mask = keep_largest(weights, density)
    blocks = regroup_paper(mask, PaperRule())
    assert not isinstance(blocks, str)
    stored = sum(block.stored for block in blocks) / mask.size
    theirs = sum((weights * mask)[np.ix_(block.rows, block.columns)].sum() for block in blocks) / weights[mask].sum()
    assert group(weights, density, stored, 16)[0] >= theirs + (0.05 if draw is draw_plain else 0.03)


def test_lower_groups_hold_more_and_alternation_pays() -> None:
    weights = draw_structured(256, 128, 9)
    shares = [group(weights, 0.107, 0.14, height)[0] for height in (8, 16, 32, 64, 128)]
    assert shares == sorted(shares, reverse=True)
    scores = weights * keep_largest(weights, 0.107)
    (exact,) = make_exact([scores])
    once = select_once(Sheet(exact, order_rows(exact), 1, 8), 16, int(0.14 * scores.size)) / exact.sum()
    assert shares[1] > once + 0.02


def test_hidden_groups_are_found() -> None:
    """Rows of four kinds, shuffled, with columns of their own: the groups are the kinds."""
    generator = np.random.default_rng(0)
    kinds = np.repeat(np.arange(4), 16)
    generator.shuffle(kinds)
    columns = np.array([generator.permutation(96)[:24] for _ in range(4)])
    scores = np.zeros((64, 96))
    for row, kind in enumerate(kinds):
        scores[row, columns[kind]] = 1 + generator.random(24)
    (exact,) = make_exact([scores])
    (found,) = find_vectors(
        [Sheet(exact, order_rows(exact), 1, 8)], [16], int((scores > 0).sum()), iterations=15, tolerance=1e-6
    )
    assert np.array_equal(found.kept[found.labels], scores > 0)


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 60),
    height=st.integers(1, 20),
    unit=st.sampled_from([1, 3, 4, 9]),
    tile=st.sampled_from([1, 4, 8]),
    share=st.floats(0.01, 1),
    seed=st.integers(0, 9999),
)
def test_promises(rows: int, columns: int, height: int, unit: int, tile: int, share: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.random((rows, columns)) * (generator.random((rows, columns)) < 0.4)
    scores[0, 0] = 1.0
    (exact,) = make_exact([scores])
    sheet, budget = Sheet(exact, order_rows(exact), unit, tile), int(share * rows * columns)
    (found,) = find_vectors([sheet], [min(height, rows)], budget, iterations=5, tolerance=1e-6)
    sizes = np.bincount(found.labels)
    assert sizes.max() <= height
    assert (sizes[:-1] == min(height, rows)).all()
    widths = found.kept.sum(axis=1)
    stored = int((sizes * widths).sum())
    step = max(1, tile // unit) * unit
    assert 0 < stored <= max(budget, min(step, columns) * height)
    assert all(
        width % step == 0 or width % step == columns % step or width % unit in (0, columns % unit) for width in widths
    )
    starts = np.arange(0, columns, unit)
    for kept in found.kept:
        parts = np.split(kept, starts[1:])
        assert all(part.all() or not part.any() for part in parts), "a unit is half kept"
    assert capture([sheet], [found]) >= select_once(sheet, min(height, rows), budget)


def test_sums_are_exact_in_any_order() -> None:
    (exact,) = make_exact([draw_structured(128, 64, 9)])
    assert np.array_equal(exact, np.rint(exact))
    shuffled = np.random.default_rng(0).permutation(exact.ravel())
    assert exact.sum() == sum(shuffled.tolist()) == shuffled[::-1].cumsum()[-1]
    assert exact.sum() < 2**53


def test_rounding_keeps_zero_and_scale() -> None:
    assert round_scores(np.array([0.0, 0.5, 1.0]), 4).tolist() == [0, 8, 16]
    assert round_scores(np.zeros(3), 4).tolist() == [0, 0, 0]


def test_two_layers_share_one_budget() -> None:
    """The layer with the larger weights gets more; both keep at least a tile."""
    first, second = draw_plain(32, 16, 9), draw_plain(32, 16, 9, seed=1) * 3
    exact = make_exact([first, second])
    sheets = [Sheet(scores, order_rows(scores), 1, 8) for scores in exact]
    found = find_vectors(sheets, [16, 16], 2000, iterations=15, tolerance=1e-6)
    stored = [int(item.kept.sum()) * 16 for item in found]
    assert sum(stored) <= 2000
    assert stored[0] < stored[1]


def test_layers_without_scores_and_single_rows_keep_their_order() -> None:
    assert order_rows(np.zeros((1, 4))).tolist() == [0]
    assert order_rows(np.zeros((3, 0))).tolist() == [0, 1, 2]
    assert sorted(order_rows(np.zeros((5, 4))).tolist()) == [0, 1, 2, 3, 4]


_DIGEST = """
import hashlib, numpy as np
from tests.structure.masks import draw_structured, keep_largest
from tests.structure.test_vectors import group
share, found = group(draw_structured(160, 64, 9), 0.2, 0.2, 16)
print(hashlib.sha256(np.packbits(found.kept[found.labels]).tobytes()).hexdigest(), repr(share))
"""


def test_the_same_bits_on_one_and_two_threads() -> None:
    results = set()
    for threads in ("1", "2"):
        count = {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", _DIGEST],
            cwd=Path(__file__).parents[2],
            env={**os.environ, **count},
            capture_output=True,
            text=True,
            check=True,
        )
        results.add(done.stdout.split()[0])
    assert len(results) == 1


def test_a_large_layer_is_quick() -> None:
    """512 x 4608 within two seconds of processor time."""
    weights = draw_plain(512, 512, 9)
    start = time.process_time()
    group(weights, 0.2, 0.2, 16)
    assert time.process_time() - start < 2
