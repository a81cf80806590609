"""Regrouping layers: options, conv groups, small layers, leftovers, and a reason for every refusal."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from fxprune.structure.cells import Cells
from fxprune.structure.paper import PaperRule
from fxprune.structure.regroup import RegroupRule, VectorRule, regroup_layers
from tests.structure.masks import draw_plain, draw_structured, keep_largest

EFFICIENCY = ((1, 0.22), (2, 0.39), (4, 0.65), (8, 0.85), (16, 0.9), (32, 0.97))


def layer(rows: int = 64, channels: int = 16, density: float = 0.3, conv_groups: int = 1, seed: int = 0) -> Cells:
    weights = draw_structured(rows, channels, 9, seed)
    return Cells(keep_largest(weights, density), weights, conv_groups, 9)


def share(cells: Cells, mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> float:
    return float(cells.scores[mask & cells.mask].sum() / cells.scores[cells.mask].sum())


def test_each_layer_spends_its_own_cells() -> None:
    cells = [layer(), layer(32, 8, 0.1)]
    for before, after in zip(cells, regroup_layers(cells, VectorRule()), strict=True):
        assert not after.refused
        assert 0 <= before.mask.sum() - after.mask.sum() <= 8 * 8
        assert {group.height for group in after.groups} == {8}
        assert sum(group.stored for group in after.groups) == after.mask.sum()


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_density_is_met(density: float) -> None:
    dense = Cells(np.ones((64, 144), dtype=np.bool_), draw_plain(64, 16, 9))
    (after,) = regroup_layers([dense], VectorRule(density=density))
    assert after.mask.mean() == pytest.approx(density, abs=8 * 8 / 64 / 144)


def test_shared_budget_fills_the_layers_that_hold_more_for_a_cell() -> None:
    weak, strong = layer(seed=1), layer(seed=2)
    strong = replace(strong, scores=strong.scores * 5)
    after = regroup_layers([weak, strong], VectorRule(budget="global"))
    assert after[0].mask.sum() < weak.mask.sum()
    assert after[1].mask.sum() > strong.mask.sum()
    assert sum(int(item.mask.sum()) for item in after) <= weak.mask.sum() + strong.mask.sum()


def test_no_layer_is_emptied_by_a_shared_budget() -> None:
    weak, strong = layer(density=0.05), layer(seed=2)
    strong = replace(strong, scores=strong.scores * 1e4)
    after = regroup_layers([weak, strong], VectorRule(budget="global", density=0.1))
    assert after[0].mask.sum() == 8 * 8
    assert "would be cut in two" in str(after[0].reason)
    assert not after[0].refused


def test_groups_stay_inside_conv_groups() -> None:
    cells = layer(64, 16, 0.3, conv_groups=4)
    (after,) = regroup_layers([cells], VectorRule(height=32))
    assert {group.height for group in after.groups} == {16}
    assert all(len(np.unique(group.rows // 16)) == 1 for group in after.groups)


def test_whole_channels_as_units() -> None:
    (after,) = regroup_layers([layer()], VectorRule(unit="kernel"))
    for group in after.groups:
        assert np.array_equal(group.columns, (np.unique(group.columns // 9)[:, None] * 9 + np.arange(9)).ravel())


@pytest.mark.parametrize(("unit", "run"), [("run4", 4), ("run8", 8)])
def test_runs_of_columns_as_units(unit: str, run: int) -> None:
    (after,) = regroup_layers([layer()], VectorRule(unit=unit))  # type: ignore[arg-type]  # one of the literals
    for group in after.groups:
        assert np.array_equal(group.columns, (np.unique(group.columns // run)[:, None] * run + np.arange(run)).ravel())


def test_height_is_chosen_at_equal_predicted_time() -> None:
    cells = layer(density=0.107)
    heights = []
    for rates in (EFFICIENCY, ((8, 0.1), (32, 1.0)), ((8, 1.0), (32, 1.0))):
        (after,) = regroup_layers([cells], VectorRule(efficiency=rates))
        (height,) = {group.height for group in after.groups}
        heights.append(height)
    assert heights[0] in {4, 8, 16, 32}
    assert heights[1:] == [32, 8]


def test_small_layers_are_grouped_where_the_papers_rule_refuses() -> None:
    for rows in (4, 7, 16, 64, 128):
        cells = layer(rows, 16)
        (ours,), (theirs,) = regroup_layers([cells], VectorRule()), regroup_layers([cells], PaperRule())
        assert not ours.refused
        assert theirs.refused
        assert "rows a part" in str(theirs.reason)
        assert np.array_equal(theirs.mask, cells.mask)


REFUSED: dict[str, tuple[Cells, RegroupRule, str]] = {
    "fewer rows than a vector": (layer(3), VectorRule(), "3 rows are fewer than one vector of 4"),
    "depthwise": (layer(16, 1, conv_groups=16), VectorRule(), "depthwise, 16 conv groups of one row"),
    "depthwise, paper": (layer(16, 1, conv_groups=16), PaperRule(), "depthwise, 16 conv groups of one row"),
    "conv groups, paper": (layer(64, 16, conv_groups=2), PaperRule(), "knows no conv groups, this layer has 2"),
    "nothing kept": (Cells(np.zeros((8, 9), dtype=np.bool_), np.ones((8, 9))), VectorRule(), "keeps nothing"),
    "no weight": (Cells(np.ones((8, 9), dtype=np.bool_), np.zeros((8, 9))), VectorRule(), "has score 0"),
    "scores of rows": (Cells(np.ones((8, 9), dtype=np.bool_), np.ones(8)), VectorRule(), "score of each cell"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    cells, rule, reason = REFUSED[name]
    (after,) = regroup_layers([cells], rule)
    assert after.refused
    assert reason in str(after.reason)
    assert after.mask is cells.mask


def test_a_refused_layer_stands_in_nobodys_way() -> None:
    after = regroup_layers([layer(3), layer(), layer(3)], VectorRule(budget="global"))
    assert [item.refused for item in after] == [True, False, True]


def test_leftovers() -> None:
    cells = layer()
    (dropped,) = regroup_layers([cells], VectorRule())
    (covered,) = regroup_layers([cells], VectorRule(leftovers="cover"))
    assert np.array_equal(covered.mask, dropped.mask | cells.mask)
    assert share(cells, covered.mask) == 1 > share(cells, dropped.mask)


def test_leftovers_by_predicted_time() -> None:
    """Many scattered cells are dropped; one stray beside perfect groups stays."""
    scattered = layer()
    rule = VectorRule(height=16, leftovers="time", efficiency=EFFICIENCY)
    (after,) = regroup_layers([scattered], rule)
    assert not after.mask[~regroup_layers([scattered], replace(rule, leftovers="drop"))[0].mask].any()
    mask = np.zeros((64, 144), dtype=np.bool_)
    mask[:32, :64] = mask[32:, 64:128] = True
    mask[0, 143] = True
    stray = Cells(mask, mask.astype(np.float64))
    (after,) = regroup_layers([stray], replace(rule, density=0.44))
    assert after.mask[0, 143]


def test_paper_rule_goes_through() -> None:
    cells = layer(256, 16)
    (after,) = regroup_layers([cells], PaperRule())
    assert not after.refused
    assert sum(group.stored for group in after.groups) == after.mask.sum()


@given(
    rows=st.integers(1, 24),
    conv_groups=st.integers(1, 3),
    channels=st.integers(1, 6),
    density=st.floats(0, 1),
    unit=st.sampled_from(["column", "kernel", "run4", "run8"]),
    budget=st.sampled_from(["layer", "global"]),
    leftovers=st.sampled_from(["drop", "cover", "time"]),
    height=st.sampled_from([None, 1, 4, 16]),
    seed=st.integers(0, 999),
)
def test_promises(
    rows: int,
    conv_groups: int,
    channels: int,
    density: float,
    unit: str,
    budget: str,
    leftovers: str,
    height: int | None,
    seed: int,
) -> None:
    generator = np.random.default_rng(seed)
    shape = (rows * conv_groups, channels * 9)
    layers = [
        Cells(generator.random(shape) < density, generator.random(shape) * scale, conv_groups, 9) for scale in (1, 10)
    ]
    rule = VectorRule(
        height=height,
        unit=unit,  # type: ignore[arg-type]  # one of the literals
        budget=budget,  # type: ignore[arg-type]  # one of the literals
        leftovers=leftovers,  # type: ignore[arg-type]  # one of the literals
        efficiency=EFFICIENCY,
    )
    first, second = regroup_layers(layers, rule), regroup_layers(layers, rule)
    for before, after, again in zip(layers, first, second, strict=True):
        assert np.array_equal(after.mask, again.mask)
        assert after.refused == (after.mask is before.mask)
        assert not after.refused or after.reason
        if after.refused:
            continue
        assert after.mask.any()
        stored = np.zeros_like(after.mask)
        for group in after.groups:
            assert not stored[group.rows].any(), "a row is in two groups"
            assert len(np.unique(group.rows // rows)) == 1, "a group crosses a conv group"
            stored[np.ix_(group.rows, group.columns)] = True
        assert not (stored & ~after.mask).any()
        assert leftovers != "drop" or np.array_equal(stored, after.mask)
        assert leftovers != "cover" or not (before.mask & ~after.mask).any()


@pytest.mark.parametrize(
    "options",
    [
        {"unit": "row"},
        {"budget": "net"},
        {"leftovers": "keep"},
        {"density": 0.0},
        {"density": 1.5},
        {"height": 0},
        {"tile": 0},
        {"iterations": -1},
        {"leftovers": "time"},
        {"efficiency": ((4, 0.5), (2, 0.4))},
    ],
)
def test_rule_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"needs|out of range"):
        VectorRule(**options)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("mask", "scores", "groups", "message"),
    [
        (np.ones((4, 4)), np.ones((4, 4)), 1, "needs to be bool"),
        (np.ones((4, 4), dtype=np.bool_), np.ones((4, 3)), 1, "the mask has"),
        (np.ones((4, 4), dtype=np.bool_), -np.ones((4, 4)), 1, "negative or not finite"),
        (np.ones((4, 4), dtype=np.bool_), np.full((4, 4), np.nan), 1, "negative or not finite"),
        (np.ones((4, 4), dtype=np.bool_), np.ones((4, 4)), 3, "do not divide into 3 conv groups"),
    ],
)
def test_cells_check_their_invariants(
    mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    scores: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    groups: int,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        Cells(mask, scores, groups)
