"""The paper's rule, against its closed form, the published inflation, and its own text in plain loops."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from fxprune.structure import paper
from fxprune.structure.paper import PaperRule, regroup_paper
from tests.structure.masks import BoolArray, draw_plain, keep_largest

BUG = PaperRule(bug_compat=True)


def stored_share(mask: BoolArray, rule: PaperRule) -> float:
    blocks = regroup_paper(mask, rule)
    assert not isinstance(blocks, str), blocks
    return sum(block.stored for block in blocks) / mask.size


@pytest.mark.parametrize("density", [0.64, 0.512, 0.41, 0.328, 0.262, 0.21, 0.168, 0.134])
def test_correct_rule_meets_its_closed_form(density: float) -> None:
    mask = keep_largest(draw_plain(512, 256, 9), density)
    assert stored_share(mask, PaperRule()) == pytest.approx(1.5 * density / (1 + 1.5 * density), abs=0.02)


@pytest.mark.parametrize(
    ("density", "published"),
    [(0.512, 0.797), (0.41, 0.648), (0.328, 0.521), (0.262, 0.421), (0.21, 0.34), (0.168, 0.278), (0.134, 0.225)],
)
def test_defects_inflate_as_published(density: float, published: float) -> None:
    mask = keep_largest(draw_plain(512, 256, 9), density)
    assert stored_share(mask, BUG) == pytest.approx(published, abs=0.02)


def test_dense_masks_lose_whole_parts_to_the_defects() -> None:
    """At 0.64 a part may find no width at all and is dropped; where none is, the published share is met."""
    mask = keep_largest(draw_plain(512, 256, 9), 0.64)
    blocks = regroup_paper(mask, BUG)
    assert not isinstance(blocks, str)
    share = [block.columns.size / mask.shape[1] for block in blocks]
    assert np.mean(share) == pytest.approx(0.987, abs=0.02)
    assert len(blocks) <= 8


@pytest.mark.parametrize("rows", [16, 64, 128])
def test_small_layers_are_refused_with_the_reason(rows: int) -> None:
    found = regroup_paper(keep_largest(draw_plain(rows, 64, 9), 0.3), PaperRule())
    assert isinstance(found, str)
    assert f"{rows} rows in 8 parts are {rows // 8} rows a part" in found
    assert "method='vectors'" in found


def test_layer_without_a_width_is_refused_with_the_reason() -> None:
    found = regroup_paper(np.ones((256, 2), dtype=np.bool_), PaperRule())
    assert isinstance(found, str)
    assert "in none of 8 parts" in found


def test_empty_mask_is_refused_with_the_reason() -> None:
    assert "keeps nothing" in str(regroup_paper(np.zeros((256, 9), dtype=np.bool_), PaperRule()))


def test_by_hand() -> None:
    """Two kinds of row in two parts: each part stores its own columns and nothing else."""
    mask = np.zeros((8, 10), dtype=np.bool_)
    mask[::2, :4] = True
    mask[1::2, 6:] = True
    mask[0, 9] = True
    blocks = regroup_paper(mask, PaperRule(parts=2, min_rows=4))
    assert not isinstance(blocks, str)
    even, odd = blocks
    assert (even.rows.tolist(), even.columns.tolist()) == ([0, 2, 4, 6], [0, 1, 2, 3])  # 4 > 1.5 * 1; 3 = 1.5 * 2
    assert odd.rows.tolist() == [1, 3, 5, 7]
    assert odd.columns.tolist() == [6, 7, 8]  # 3 > 1.5 * 1


def find_width_as_written(cells: BoolArray, order: NDArray[np.int64], ratio: float) -> int:
    """The correct rule in plain loops."""
    for width in range(1, cells.shape[1]):
        inside = set(order[:width].tolist())
        if all(width > ratio * sum(1 for c in np.flatnonzero(row) if c not in inside) for row in cells):
            return width
    return 0


def find_width_of_the_published_code(cells: BoolArray, _: NDArray[np.int64], ratio: float) -> int:
    """The published loops: column w is looked at, not order[w - 1]; the first row that fails ends the round."""
    left = [int(row.sum()) for row in cells]
    for width in range(1, cells.shape[1]):
        for row in range(len(cells)):
            if cells[row, width]:
                left[row] -= 1
            if width <= ratio * left[row]:
                break
        else:
            return width
    return 0


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 30),
    density=st.floats(0, 1),
    ratio=st.sampled_from([0.5, 1.0, 1.5, 3.0]),
    seed=st.integers(0, 9999),
)
def test_widths_equal_those_of_plain_loops(rows: int, columns: int, density: float, ratio: float, seed: int) -> None:
    cells = np.random.default_rng(seed).random((rows, columns)) < density
    order = np.argsort(-cells.sum(axis=0), kind="stable")
    assert paper._find_width(cells, order, ratio) == find_width_as_written(cells, order, ratio)
    assert paper._find_width_with_defects(cells, order, ratio) == find_width_of_the_published_code(cells, order, ratio)


@given(rows=st.integers(17, 60), columns=st.integers(2, 40), seed=st.integers(0, 999), bug=st.booleans())
def test_blocks_are_disjoint_in_rows_and_high_enough(rows: int, columns: int, seed: int, bug: bool) -> None:
    mask = np.random.default_rng(seed).random((rows, columns)) < 0.3
    blocks = regroup_paper(mask, PaperRule(parts=3, min_rows=5, bug_compat=bug))
    if isinstance(blocks, str):
        return
    together = np.concatenate([block.rows for block in blocks])
    assert len(together) == len(np.unique(together))
    assert all(block.height >= 5 for block in blocks)
    assert mask[together].any(axis=1).all(), "an empty row is in a block"


@pytest.mark.parametrize(
    ("parts", "ratio", "min_rows"), [(0, 1.5, 17), (8, 0.0, 17), (8, float("nan"), 17), (8, 1.5, 0)]
)
def test_rule_out_of_range(parts: int, ratio: float, min_rows: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        PaperRule(parts, ratio, min_rows)
