"""What a lottery trains: the user's model, loader, training step and measure, as callables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Batch = TypeVar("Batch")

Step = Callable[[nn.Module, Batch, Optimizer], Tensor]
"""Trains on one batch (gradients and the step of the optimizer included) and returns the loss."""

Labelled = tuple[Tensor, Tensor]
"""Inputs [N, ...] and labels [N]."""


@runtime_checkable
class Stateful(Protocol):
    """Something whose state is part of a checkpoint."""

    def state_dict(self) -> dict[str, object]:
        """Return the state as plain data."""

    def load_state_dict(self, state_dict: dict[str, object]) -> object:
        """Take the state back."""


@dataclass(frozen=True)
class Task(Generic[Batch]):
    """What is trained, on what, and how.

    Every random choice must come from the global generators of torch, NumPy or Python, or from a generator of the
    loader or its samplers: all of them are seeded anew for each epoch. If the loader or the step has `state_dict` and
    `load_state_dict`, its state is saved too.

    Attributes:
        make_model: Makes the model with new initial weights, on its device. It may draw them, or copy a given model.
        loader: Gives the batches of one epoch, again and again.
        step: Trains on one batch.
        make_optimizer: Makes the optimizer of a model.
        make_scheduler: Makes the scheduler of an optimizer, stepped once an epoch; None: the rate stays.
        evaluate: Measures a trained model, in eval mode, more is better; None: nothing is measured.
    """

    make_model: Callable[[], nn.Module]
    loader: Iterable[Batch]
    step: Step[Batch]
    make_optimizer: Callable[[nn.Module], Optimizer]
    make_scheduler: Callable[[Optimizer], LRScheduler] | None = None
    evaluate: Callable[[nn.Module], float] | None = None


def train_batch(model: nn.Module, batch: Labelled, optimizer: Optimizer) -> Tensor:
    """Do one step of classification with cross entropy: the `step` of most tasks.

    Args:
        model: The model, in train mode.
        batch: Inputs [N, ...] and labels [N].
        optimizer: Its optimizer.

    Returns:
        The mean loss of the batch, a scalar.
    """
    inputs, labels = (part.to(_find_device(model)) for part in batch)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(inputs), labels)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own, without annotations
    optimizer.step()
    return loss.detach()


def measure_accuracy(model: nn.Module, loader: Iterable[Labelled]) -> float:
    """Return the share of labels that a model in eval mode gets right, in [0, 1].

    Args:
        model: The model.
        loader: Batches of inputs [N, ...] and labels [N].
    """
    right = total = 0
    device = _find_device(model)
    with torch.no_grad():
        for inputs, labels in loader:
            right += int((model(inputs.to(device)).argmax(1) == labels.to(device)).sum())
            total += len(labels)
    return right / max(1, total)


def _find_device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
