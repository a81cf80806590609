"""Iterative magnitude pruning with rewinding, and the retraining of any ticket; resumable at any moment.

Source:
    "Coarsening the Granularity" (arXiv 2202.04736), section 3.1 and algorithm 1; Frankle et al., "Linear Mode
    Connectivity and the Lottery Ticket Hypothesis" (arXiv 1912.05671) for rewinding. The published code restarts the
    schedule after rewinding and trains all epochs again; here it goes on with the epochs that remain, as in the paper.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Generic, Literal, Self, cast

import torch
from rich.console import Console
from torch import Tensor, nn

from fxprune.errors import ArtifactError, TrainingError
from fxprune.lottery.checkpoint import Payload, lock_folder, read_file, write_file
from fxprune.lottery.plan import Plan
from fxprune.lottery.progress import show_epochs
from fxprune.lottery.prunable import count_kept, draw_scores, find_prunable, keep_largest, score_magnitudes
from fxprune.lottery.seeding import derive_seed, seeded
from fxprune.lottery.task import Batch, Task
from fxprune.lottery.training import Snapshot, State, Trained, Trainer, begin, read_snapshot
from fxprune.masks import resolve_masks

Start = Literal["rewind", "init", "reinit", "trained"]
"""Where a ticket's training begins: the early weights of the dense training; its initial weights; new random weights
(the control); the dense training's last weights at the rewound schedule (fine-tuning)."""


@dataclass(frozen=True)
class Ticket:
    """A mask, and the network that was trained under it.

    Attributes:
        name: Its name; files of the folder begin with it.
        masks: Bool masks by parameter name, True = kept.
        trained: The end of its training.
    """

    name: str
    masks: dict[str, Tensor]
    trained: Trained


class Lottery(Generic[Batch]):
    """Finds tickets and trains them; everything that was computed lies in one folder and is never computed twice.

    A process may be killed at any moment. The same calls on the same folder go on after the last whole epoch and give
    the same bits on the same machine with the same number of threads, if the operators of the model are deterministic.

    Use it as a context manager: it holds the folder for this process alone.
    """

    def __init__(self, task: Task[Batch], plan: Plan, folder: Path, *, console: Console | None = None) -> None:
        """Prepare a lottery.

        Args:
            task: What is trained.
            plan: The numbers.
            folder: Where checkpoints and results lie; it is made.
            console: Where progress bars are shown; None: nowhere.
        """
        self.task = task
        self.plan = plan
        self._folder = folder
        self._console = console
        self._open = ExitStack()

    def __enter__(self) -> Self:
        """Lock the folder and check that it belongs to this task and plan.

        Raises:
            ArtifactError: Another process uses the folder, or it belongs to another task or plan.
        """
        with ExitStack() as opening:
            opening.enter_context(lock_folder(self._folder))
            self._check_folder()
            self._open = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the folder."""
        self._open.close()

    @functools.cached_property
    def prunable(self) -> dict[str, torch.Size]:
        """Shape of every weight that is pruned, by name."""
        return find_prunable(self._make_model(), self.plan.exclude)

    def find_tickets(self) -> Iterator[Ticket]:
        """Yield the ticket of every round, from the first to the last; each is trained when it is asked for."""
        for number in range(1, self.plan.rounds + 1):
            yield self.find_ticket(number)

    def find_ticket(self, number: int) -> Ticket:
        """Return the ticket of one round, trained; the rounds before it are run first.

        Args:
            number: The round, from 1; round 0 is the dense network, which has no masks.
        """
        if number == 0:
            return self._train("dense", {}, self._find_init(), rewind=True)
        name = f"round-{number:02d}"
        if (known := self._read(name)) is not None:
            return known
        masks = self._prune(self.find_ticket(number - 1), number)
        return self._train(name, masks, self.find_start("rewind"))

    def train(self, name: str, masks: Mapping[str, object], start: Start = "rewind") -> Ticket:
        """Train any ticket under its masks, beside the rounds.

        Args:
            name: Its name: letters, digits and -_.+@= of your choice; a name that is known is not trained again.
            masks: Masks in any form that `fxprune.compile` takes.
            start: Where the training begins.

        Raises:
            ArtifactError: The name is known with other masks or another start.
            MaskError: A mask does not fit.
        """
        _check_name(name)
        kept = resolve_masks(self._make_model(), masks)
        return self._train(f"ticket-{name}", kept, self.find_start(start), start=start)

    def read(self, name: str) -> Ticket:
        """Return a ticket that `train` has finished.

        Args:
            name: Its name.

        Raises:
            ArtifactError: It is not finished.
        """
        _check_name(name)
        ticket = self._read(f"ticket-{name}")
        if ticket is None:
            raise ArtifactError(f"{self._folder} has no finished ticket {name!r}; train it first.")
        return ticket

    def find_start(self, start: Start) -> Snapshot:
        """Return the snapshot that a training begins with; the dense network is trained first if it is needed.

        Args:
            start: Which one.

        Raises:
            TrainingError: New random weights are asked for, and `make_model` gives the same ones again.
        """
        if start == "init":
            return self._find_init()
        if start == "reinit":
            return self._draw_again()
        dense = self.find_ticket(0)
        rewind = read_snapshot(self._folder / "rewind.pt")
        if rewind is None:
            raise ArtifactError(f"{self._folder / 'rewind.pt'} is missing though the dense network is trained.")
        return dataclasses.replace(rewind, model=dense.trained.state) if start == "trained" else rewind

    def keep_one_shot(self, number: int) -> dict[str, Tensor]:
        """Return masks as sparse as those of a round, cut from the dense network at once.

        Train them from "rewind" (one-shot ticket) or from "trained" (one-shot magnitude pruning with fine-tuning, OMP).

        Args:
            number: The round.
        """
        dense = self.find_ticket(0)
        return keep_largest(score_magnitudes(dense.trained.state, self._keep_all()), self._count(number))

    def keep_random(self, number: int) -> dict[str, Tensor]:
        """Return masks as sparse as those of a round, drawn at random over all layers together.

        Args:
            number: The round.
        """
        return keep_largest(draw_scores(self.prunable, derive_seed(self.plan.seed, "random")), self._count(number))

    def build(self, ticket: Ticket) -> nn.Module:
        """Return the trained network of a ticket, in eval mode; its pruned weights are zero.

        Args:
            ticket: The ticket.
        """
        model = self._make_model()
        model.load_state_dict(ticket.trained.state)
        return model.eval()

    def _make_model(self) -> nn.Module:
        with seeded(self.plan.seed, "build"):
            return self.task.make_model()

    def _keep_all(self) -> dict[str, Tensor]:
        return {name: torch.ones(shape, dtype=torch.bool) for name, shape in self.prunable.items()}

    def _count(self, number: int) -> int:
        return count_kept(sum(shape.numel() for shape in self.prunable.values()), self.plan.rate, number)

    def _prune(self, before: Ticket, number: int) -> dict[str, Tensor]:
        masks = before.masks or self._keep_all()
        return keep_largest(score_magnitudes(before.trained.state, masks), self._count(number))

    def _find_init(self) -> Snapshot:
        """Return the initial weights; they are drawn once and kept, for `make_model` may read a file that changes."""
        path = self._folder / "init.pt"
        if (known := read_snapshot(path)) is not None:
            return known
        drawn = begin(self.task, self.plan.seed, "init")
        write_file(path, drawn.to_payload())
        return drawn

    def _draw_again(self) -> Snapshot:
        first, again = self._find_init(), begin(self.task, self.plan.seed, "reinit")
        if all(torch.equal(first.model[name], again.model[name]) for name in self.prunable):
            raise TrainingError(
                "start='reinit' needs new random weights, and make_model gives the same ones whatever the seed. Let it "
                "draw from torch's global generator."
            )
        return dataclasses.replace(first, model=again.model)

    def _train(
        self, name: str, masks: dict[str, Tensor], begin_at: Snapshot, *, start: Start = "rewind", rewind: bool = False
    ) -> Ticket:
        digest = f"{start} {_digest(masks)}"
        if (known := self._read(name, digest)) is not None:
            return known
        checkpoint = self._folder / f"{name}.{_digest(masks)[:12]}.running"
        trainer = Trainer(self.task, self.plan.epochs, self.plan.seed)
        keep = (self.plan.rewind, self._folder / "rewind.pt") if rewind else None
        with show_epochs(name, begin_at.epoch, self.plan.epochs, self._console) as on_epoch:
            trained = trainer.train(begin_at, masks, checkpoint, on_epoch=on_epoch, rewind=keep)
        fields: Payload = {"state": trained.state, "score": trained.score, "losses": list(trained.losses)}
        write_file(self._folder / f"{name}.pt", {"digest": digest, "masks": masks, **fields})
        checkpoint.unlink(missing_ok=True)
        return Ticket(name, masks, trained)

    def _read(self, name: str, digest: str | None = None) -> Ticket | None:
        """Return a finished ticket; None if it is not finished."""
        payload = read_file(self._folder / f"{name}.pt")
        if payload is None:
            return None
        if digest not in (None, payload["digest"]):
            raise ArtifactError(f"{name} was trained before with other masks or another start; take another name.")
        trained = Trained(
            state=cast("State", payload["state"]),
            score=cast("float | None", payload["score"]),
            losses=tuple(cast("list[float]", payload["losses"])),
        )
        return Ticket(name, cast("dict[str, Tensor]", payload["masks"]), trained)

    def _check_folder(self) -> None:
        path = self._folder / "plan.pt"
        shapes = {name: list(tensor.shape) for name, tensor in self._make_model().state_dict().items()}
        found: Payload = {"plan": dataclasses.asdict(self.plan), "shapes": shapes}
        known = read_file(path)
        if known is None:
            write_file(path, found)
        elif known != found:
            raise ArtifactError(
                f"{self._folder} belongs to another lottery ({known['plan']}), or to a model of other shapes; this one "
                f"is {found['plan']}. Take another folder."
            )


def _check_name(name: str) -> None:
    if not name or not all(sign.isascii() and (sign.isalnum() or sign in "-_.+@=") for sign in name):
        raise TrainingError(f"The name {name!r} becomes a file name; use letters, digits and -_.+@= only.")


def _digest(masks: Mapping[str, Tensor]) -> str:
    text = hashlib.sha256()
    for name, mask in masks.items():
        text.update(name.encode() + mask.cpu().numpy().tobytes())
    return text.hexdigest()
