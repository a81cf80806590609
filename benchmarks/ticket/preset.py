"""How large an experiment is: data, network and epochs, rounds and seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.ticket.arms import ARMS, AS_PAPER, PAPER, Arm
from benchmarks.ticket.network import TicketNet
from fxprune.lottery import Plan, Recipe, Task, measure_accuracy, train_batch
from fxprune.lottery.data import Batches, Images, read_digits, read_mnist_5k, split_images
from fxprune.lottery.task import Labelled

SPLIT_SEED = 0
"""All seeds share one training set and one test set."""

_EVALUATION_BATCH = 500

_READERS: dict[str, Callable[[], Images]] = {"mnist-5k": read_mnist_5k, "digits": read_digits}


@dataclass(frozen=True)
class Preset:
    """One size of the experiment.

    Attributes:
        name: Name on the command line.
        data: Which images.
        per_class: Training images of each class; all others are the test set.
        recipe: How a network is trained.
        rounds: Rounds of pruning.
        at: Rounds at which the arms are trained.
        seeds: Number of seeds.
        widths: Output channels of the convolutions behind the stem.
        arm_names: Names of the arms that are trained beside the rounds.
    """

    name: str
    data: str
    per_class: int
    recipe: Recipe
    rounds: int
    at: tuple[int, ...]
    seeds: int
    widths: tuple[int, ...] = (32, 128, 256)
    arm_names: tuple[str, ...] = tuple(arm.name for arm in ARMS)

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            ValueError: An arm is not known.
        """
        known = [arm.name for arm in ARMS]
        for name in self.arm_names:
            if name not in known:
                raise ValueError(f"there is no arm {name!r}; the arms are {', '.join(known)}")

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms that are trained beside the rounds."""
        return tuple(arm for arm in ARMS if arm.name in self.arm_names)

    def make_plan(self, seed: int) -> Plan:
        """Make the plan of one seed."""
        return Plan(self.recipe.epochs, self.rounds, seed=seed)

    def make_task(self) -> Task[Labelled]:
        """Read the images and make the task."""
        train, tests = self.read_images()
        side = train.pixels.shape[-1]
        return Task(
            make_model=lambda: TicketNet(self.widths, side).prefer_channels_last(),
            loader=Batches(train, self.recipe.batch),
            step=train_batch,
            make_optimizer=self.recipe.make_optimizer,
            make_scheduler=self.recipe.make_scheduler,
            evaluate=lambda model: measure_accuracy(model, tests),
        )

    def read_images(self) -> tuple[Images, Batches]:
        """Read the training images, and the test images in batches."""
        train, test = split_images(_READERS[self.data](), self.per_class, SPLIT_SEED)
        return train, Batches(test, _EVALUATION_BATCH, train=False, statistics=train)

    def with_epochs(self, epochs: int | None) -> Preset:
        """Return the preset with another number of epochs, the milestones at the same shares of them."""
        if epochs is None:
            return self
        milestones = tuple(epochs * milestone // self.recipe.epochs for milestone in self.recipe.milestones)
        return replace(self, recipe=replace(self.recipe, epochs=epochs, milestones=milestones))


RULES = "rules"
"""Name of the preset that compares two rules only: the recipe of `default`, deeper rounds, more seeds."""

_DEEP = (4, 7, 10, 13, 16)

PRESETS = {
    preset.name: preset
    for preset in (
        Preset("smoke", "digits", 100, Recipe(20, (10, 15), 64), rounds=6, at=(3, 6), seeds=1),
        Preset("default", "mnist-5k", 100, Recipe(16, (8, 12), 64), rounds=10, at=(4, 7, 10), seeds=4),
        Preset("full", "mnist-5k", 400, Recipe(30, (15, 22), 64), rounds=10, at=(4, 7, 10), seeds=4),
        Preset(RULES, "mnist-5k", 100, Recipe(16, (8, 12), 64), 16, _DEEP, seeds=10, arm_names=(PAPER, AS_PAPER)),
    )
}
"""By name; `default` is sized for two cores and half an hour."""
