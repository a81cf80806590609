"""How a network of the paper is trained: SGD with momentum, and a learning rate that falls in steps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

from fxprune.errors import TrainingError


@dataclass(frozen=True)
class Recipe:
    """The settings of one training.

    Attributes:
        epochs: Epochs of a whole training.
        milestones: Epochs after which the learning rate falls to a tenth.
        batch: Images a batch.
        rate: Learning rate at the beginning.
        decay: Weight decay.
        momentum: Momentum.
    """

    epochs: int
    milestones: tuple[int, ...]
    batch: int
    rate: float = 0.1
    decay: float = 1e-4
    momentum: float = 0.9

    def make_optimizer(self, model: nn.Module) -> Optimizer:
        """Make the optimizer: the `make_optimizer` of a `Task`."""
        return SGD(model.parameters(), lr=self.rate, momentum=self.momentum, weight_decay=self.decay)

    def make_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """Make the scheduler: the `make_scheduler` of a `Task`."""
        return MultiStepLR(optimizer, list(self.milestones), gamma=0.1)


def _cifar(decay: float) -> Recipe:
    return Recipe(epochs=160, milestones=(80, 120), batch=128, decay=decay)


_IMAGENET = Recipe(epochs=90, milestones=(29, 59, 79), batch=1024, rate=0.4)

RECIPES: dict[tuple[str, str], Recipe] = {
    ("cifar10", "wrn32-2"): _cifar(1e-4),
    ("cifar10", "resnet18"): _cifar(1e-4),
    ("cifar10", "mobilenet"): _cifar(1e-4),
    ("cifar10", "vgg16"): _cifar(2e-4),
    ("cifar100", "wrn32-2"): _cifar(2e-4),
    ("cifar100", "resnet18"): _cifar(2e-4),
    ("cifar100", "mobilenet"): _cifar(2e-4),
    ("cifar100", "vgg16"): _cifar(5e-4),
    ("tiny-imagenet", "resnet50"): Recipe(epochs=95, milestones=(30, 60), batch=32, decay=5e-4),
    ("imagenet", "resnet50"): _IMAGENET,
    ("mnist-5k", "small"): Recipe(epochs=16, milestones=(8, 12), batch=64),
    ("digits", "small"): Recipe(epochs=20, milestones=(10, 15), batch=64),
}
"""By data set and network. Those of the paper: table 1 of arXiv 2202.04736; ImageNet: the published code, for the paper
does not print its batch size. The last two are this project's, for the data sets of `fxprune.lottery.data`."""


def find_recipe(data: str, network: str) -> Recipe:
    """Return a recipe by the names of data set and network.

    Raises:
        TrainingError: There is none.
    """
    if (data, network) not in RECIPES:
        known = ", ".join(f"{name} on {place}" for place, name in RECIPES)
        raise TrainingError(f"There is no recipe for {network!r} on {data!r}; there are {known}.")
    return RECIPES[data, network]
