"""Train one network from a starting point to the last epoch, masks held; a checkpoint after every epoch."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, cast

import torch
from torch import Tensor, nn

from fxprune.errors import TrainingError
from fxprune.lottery.checkpoint import Payload, read_file, write_file
from fxprune.lottery.holding import hold_masks
from fxprune.lottery.seeding import seed_loader, seeded
from fxprune.lottery.task import Batch, Stateful, Task

logger = logging.getLogger(__name__)

State = dict[str, Tensor]
"""Parameters and buffers by name, on the CPU."""

OnEpoch = Callable[[int, float], None]
"""Told the number of epochs done and the mean loss of the last one."""


@dataclass(frozen=True)
class Snapshot:
    """A point in training that another training can start from.

    Attributes:
        epoch: Epochs done.
        model: Parameters and buffers, unmasked where the training was.
        schedule: Learning rates, the scheduler's state (neither at the very beginning), and those of loader and step.
    """

    epoch: int
    model: State
    schedule: Payload

    def to_payload(self) -> Payload:
        """Return the fields as plain data."""
        return {"epoch": self.epoch, "model": self.model, "schedule": self.schedule}


def read_snapshot(path: Path) -> Snapshot | None:
    """Read a snapshot; None if there is no such file."""
    payload = read_file(path)
    if payload is None:
        return None
    return Snapshot(
        epoch=cast("int", payload["epoch"]),
        model=cast("State", payload["model"]),
        schedule=cast("Payload", payload["schedule"]),
    )


@dataclass(frozen=True)
class Trained:
    """The end of a training.

    Attributes:
        state: Parameters and buffers; pruned cells are zero.
        score: What `Task.evaluate` measured, of the last epoch; None if there is no measure.
        losses: Mean loss of each epoch that was trained.
    """

    state: State
    score: float | None
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Trainer(Generic[Batch]):
    """Trains networks of one task.

    Attributes:
        task: What is trained.
        epochs: Epochs of a whole training.
        seed: Seed of the order of the batches and of everything else that an epoch draws.
    """

    task: Task[Batch]
    epochs: int
    seed: int

    def train(
        self,
        start: Snapshot,
        masks: Mapping[str, Tensor],
        checkpoint: Path,
        *,
        on_epoch: OnEpoch,
        rewind: tuple[int, Path] | None = None,
    ) -> Trained:
        """Train from `start`, or from the checkpoint if there is one, to the last epoch.

        Args:
            start: Where a fresh training begins; its optimizer is new, its schedule goes on.
            masks: Masks that are held; empty: dense.
            checkpoint: File of the training in progress; the caller removes it when the result is safe.
            on_epoch: Told the progress.
            rewind: An epoch and the file that a snapshot of it is written to.

        Raises:
            TrainingError: The loss is not finite, or the loader has no batch.
        """
        running = _Running(self.task, start, self.seed)
        losses = running.resume(checkpoint)
        with hold_masks(running.model, running.optimizer, masks):
            running.keep(rewind)
            while running.epoch < self.epochs:
                losses.append(running.train_epoch())
                running.keep(rewind)
                running.save(checkpoint, losses)
                on_epoch(running.epoch, losses[-1])
        running.model.eval()
        with seeded(self.seed, "evaluate"):
            score = None if self.task.evaluate is None else self.task.evaluate(running.model)
        return Trained(copy_state(running.model), score, tuple(losses))


class _Running(Generic[Batch]):
    """A training in progress: model, optimizer, scheduler, epoch."""

    def __init__(self, task: Task[Batch], start: Snapshot, seed: int) -> None:
        self._task = task
        self._seed = seed
        with seeded(seed, "build"):
            self.model = task.make_model()
        self.model.load_state_dict(start.model)
        self.optimizer = task.make_optimizer(self.model)
        self._scheduler = None if task.make_scheduler is None else task.make_scheduler(self.optimizer)
        self.epoch = start.epoch
        self._load_schedule(start.schedule)

    def train_epoch(self) -> float:
        """Train one epoch; return its mean loss."""
        self.model.train()
        total, batches = torch.zeros((), dtype=torch.float64), 0
        seed_loader(self._task.loader, self._seed, self.epoch)
        with seeded(self._seed, f"epoch {self.epoch}"):
            for batch in self._task.loader:
                loss = self._task.step(self.model, batch, self.optimizer)
                total = total.to(loss.device) + loss.detach().double()
                batches += 1
        if batches == 0:
            raise TrainingError("The loader gave no batch; it must give those of one epoch each time it is iterated.")
        if not math.isfinite(mean := float(total) / batches):
            raise TrainingError(f"The loss of epoch {self.epoch + 1} is {mean}: it diverged. Lower the learning rate.")
        if self._scheduler is not None:
            self._scheduler.step()
        self.epoch += 1
        return mean

    def keep(self, rewind: tuple[int, Path] | None) -> None:
        """Write the snapshot to rewind to, if its epoch has come."""
        if rewind is not None and rewind[0] == self.epoch:
            write_file(rewind[1], Snapshot(self.epoch, copy_state(self.model), self._copy_schedule()).to_payload())

    def save(self, checkpoint: Path, losses: list[float]) -> None:
        """Write everything that the next epoch depends on."""
        states = {name: part.state_dict() for name, part in self._find_stateful().items()}
        write_file(checkpoint, {"epoch": self.epoch, "losses": losses, "model": copy_state(self.model), **states})
        if len(losses) == 1:
            read_file(checkpoint)  # a state that cannot be read back is found now, not after a kill

    def resume(self, checkpoint: Path) -> list[float]:
        """Go on from the checkpoint if there is one; return the losses so far."""
        payload = read_file(checkpoint)
        if payload is None:
            return []
        self.epoch = cast("int", payload["epoch"])
        self.model.load_state_dict(cast("State", payload["model"]))
        for name, part in self._find_stateful().items():
            part.load_state_dict(cast("Payload", payload[name]))
        logger.info("%s: resumed after epoch %d", checkpoint.stem, self.epoch)
        return list(cast("list[float]", payload["losses"]))

    def _find_stateful(self) -> dict[str, Stateful]:
        parts = {"optimizer": self.optimizer, "scheduler": self._scheduler}
        return {name: part for name, part in parts.items() if isinstance(part, Stateful)} | _find_extras(self._task)

    def _copy_schedule(self) -> Payload:
        """Return the settings of the optimizer without its momentum, and the states of everything else."""
        states = {name: part.state_dict() for name, part in self._find_stateful().items() if name != "optimizer"}
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        return {"groups": groups, **states}

    def _load_schedule(self, schedule: Payload) -> None:
        groups = cast("list[Payload]", schedule.get("groups", []))
        for group, settings in zip(self.optimizer.param_groups, groups, strict=bool(groups)):
            group.update(settings)
        for name, part in self._find_stateful().items():
            if name in schedule:
                part.load_state_dict(cast("Payload", schedule[name]))


def begin(task: Task[Batch], seed: int, label: str) -> Snapshot:
    """Make the snapshot that a training begins with: new weights, and loader and step as they are.

    Args:
        task: What is trained.
        seed: Seed of the lottery.
        label: Which weights: each label draws its own.
    """
    with seeded(seed, label):
        model = task.make_model()
    extras = {name: copy.deepcopy(part.state_dict()) for name, part in _find_extras(task).items()}
    return Snapshot(0, copy_state(model), dict(extras))


def copy_state(model: nn.Module) -> State:
    """Return parameters and buffers as copies on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}


def _find_extras(task: Task[Batch]) -> dict[str, Stateful]:
    parts = {"loader": task.loader, "step": task.step}
    return {name: part for name, part in parts.items() if isinstance(part, Stateful)}
