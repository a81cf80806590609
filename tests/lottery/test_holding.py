"""Masks hold whatever the optimizer does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from fxprune.errors import MaskError
from fxprune.lottery import hold_masks


def _train(model: nn.Linear, optimizer: Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: SGD(parameters, 0.1, momentum=0.9, weight_decay=0.1),
        lambda parameters: SGD(parameters, 0.1, momentum=0.9, nesterov=True, foreach=True),
        lambda parameters: Adam(parameters, 0.1),
        lambda parameters: AdamW(parameters, 0.1),
    ],
)
def test_pruned_weights_stay_zero_though_the_optimizer_has_momentum(
    make: Callable[[list[nn.Parameter]], Optimizer],
) -> None:
    model = nn.Linear(4, 3)
    optimizer = make(list(model.parameters()))
    _train(model, optimizer, 3)  # fills the momentum of cells that are pruned then
    mask = torch.rand(3, 4) < 0.5
    before = model.weight.detach().clone()
    with hold_masks(model, optimizer, {"weight": mask}):
        assert torch.equal(model.weight != 0, mask)
        _train(model, optimizer, 3)
    assert torch.equal(model.weight != 0, mask)
    assert not torch.equal(model.weight[mask], before[mask])


def test_gradients_of_pruned_weights_are_zero_before_the_step() -> None:
    model, mask = nn.Linear(4, 3), torch.rand(3, 4) < 0.5
    with hold_masks(model, SGD(model.parameters(), 0.1), {"weight": mask}):
        model(torch.randn(5, 4)).square().sum().backward()
    assert model.weight.grad is not None
    assert torch.equal(model.weight.grad != 0, mask)


def test_masks_are_let_go_at_the_end() -> None:
    model = nn.Linear(4, 3)
    optimizer = SGD(model.parameters(), 0.1)
    with hold_masks(model, optimizer, {"weight": torch.zeros(3, 4, dtype=torch.bool)}):
        pass
    model.weight.data.fill_(0.5)
    _train(model, optimizer, 1)
    assert bool((model.weight != 0).all())


@pytest.mark.parametrize(("name", "shape", "said"), [("weigth", (3, 4), "no parameter"), ("weight", (3, 5), "shape")])
def test_refuses_a_mask_that_does_not_fit(name: str, shape: tuple[int, int], said: str) -> None:
    model = nn.Linear(4, 3)
    optimizer = SGD(model.parameters(), 0.1)
    with (
        pytest.raises(MaskError, match=said),
        hold_masks(model, optimizer, {name: torch.ones(shape, dtype=torch.bool)}),
    ):
        pass
