"""Recipes of the paper, and how their learning rate falls."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune.errors import TrainingError
from fxprune.lottery import find_recipe


def test_the_rate_falls_to_a_tenth_at_each_milestone() -> None:
    recipe = find_recipe("mnist-5k", "small")
    model = nn.Linear(2, 2)
    optimizer = recipe.make_optimizer(model)
    scheduler = recipe.make_scheduler(optimizer)
    rates = []
    for _ in range(recipe.epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.1] * 8 + [0.01] * 4 + [0.001] * 4)


def test_the_papers_weight_decay_differs_by_data_and_network() -> None:
    assert find_recipe("cifar100", "vgg16").decay == 5e-4
    assert find_recipe("cifar10", "resnet18").decay == 1e-4
    assert find_recipe("imagenet", "resnet50").batch == 1024


def test_refuses_an_unknown_recipe_and_lists_the_known() -> None:
    with pytest.raises(TrainingError, match="resnet18 on cifar10"):
        find_recipe("cifar10", "alexnet")
