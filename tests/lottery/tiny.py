"""A lottery that takes a second: a small network on random images, and a program that a test can kill."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from fxprune.lottery import Lottery, Plan, Recipe, Task, measure_accuracy, train_batch
from fxprune.lottery.data import Batches, Images
from fxprune.lottery.task import Labelled

PLAN = Plan(epochs=4, rounds=3, rewind_epoch=1, seed=5)
RECIPE = Recipe(epochs=4, milestones=(2, 3), batch=8, rate=0.05)


def make_model() -> nn.Module:
    """Make the network: stem, two convolutions that are pruned, a head."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def make_images() -> Images:
    """Draw 40 images of three classes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 2, 6, 6), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.randint(0, 3, (40,), generator=generator))


def make_task() -> Task[Labelled]:
    """Make the task."""
    images = make_images()
    test = Batches(images, 16, train=False)
    return Task(
        make_model=make_model,
        loader=Batches(images, RECIPE.batch, padding=1, flip=True),
        step=train_batch,
        make_optimizer=RECIPE.make_optimizer,
        make_scheduler=RECIPE.make_scheduler,
        evaluate=lambda model: measure_accuracy(model, test),
    )


def run(folder: Path) -> None:
    """Run all rounds and one control."""
    with Lottery(make_task(), PLAN, folder) as lottery:
        tickets = list(lottery.find_tickets())
        lottery.train("again", tickets[-1].masks, "reinit")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("ready", flush=True)  # noqa: T201  # tells the test that the training begins
    run(Path(sys.argv[1]))
