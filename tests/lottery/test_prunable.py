"""Masks of a wanted size over all layers together."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune.errors import MaskError, TrainingError
from fxprune.lottery.prunable import count_kept, draw_scores, find_prunable, keep_largest, measure_density


def test_the_largest_of_all_layers_are_kept_and_ties_go_to_the_first() -> None:
    scores = {"a": torch.tensor([[1.0, 5.0], [2.0, 2.0]]), "b": torch.tensor([2.0, 9.0])}
    masks = keep_largest(scores, 4)
    assert masks["a"].tolist() == [[False, True], [True, True]]
    assert masks["b"].tolist() == [False, True]


@pytest.mark.parametrize("count", [0, 1, 6])
def test_exactly_so_many_are_kept(count: int) -> None:
    masks = keep_largest({"a": torch.ones(2, 3)}, count)
    assert int(masks["a"].sum()) == count


def test_a_negative_score_is_never_kept() -> None:
    with pytest.raises(MaskError, match="only 2 of 3 can be"):
        keep_largest({"a": torch.tensor([0.0, 1.0, -1.0])}, 3)


def test_refuses_weights_that_are_no_numbers() -> None:
    with pytest.raises(TrainingError, match="diverged"):
        keep_largest({"a": torch.tensor([0.0, float("nan")])}, 1)


def test_rounds_of_a_fifth_leave_the_papers_densities() -> None:
    kept = [count_kept(10_000, 0.2, number) for number in (1, 2, 5, 10)]
    assert kept == [8000, 6400, 3277, 1074]


def test_random_scores_are_those_of_the_seed() -> None:
    shapes = {"a": torch.Size([3, 4])}
    assert torch.equal(draw_scores(shapes, 1)["a"], draw_scores(shapes, 1)["a"])
    assert not torch.equal(draw_scores(shapes, 1)["a"], draw_scores(shapes, 2)["a"])


def test_density_counts_all_masks_together() -> None:
    masks = {"a": torch.tensor([True, False]), "b": torch.ones(6, dtype=torch.bool)}
    assert measure_density(masks) == 7 / 8


def test_refuses_a_model_of_nothing_but_ends() -> None:
    with pytest.raises(MaskError, match="nothing is left to prune"):
        find_prunable(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 2)))
