"""What one seed gives: a row for each trained network, in a JSON file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from benchmarks.result import write_json
from benchmarks.ticket.arms import Found, Masks
from benchmarks.ticket.preset import Preset
from fxprune import ChangedMasks, MaskChange
from fxprune.lottery import Lottery, Ticket, measure_density
from fxprune.lottery.task import Labelled

DENSE = "dense"
"""Arm of the dense network; its round is 0."""


@dataclass(frozen=True)
class Row:
    """One trained network.

    Attributes:
        seed: Seed of the lottery.
        arm: Name of the arm.
        number: The round.
        accuracy: On the test set, after the last epoch, in [0, 1].
        density: Kept weights over all weights of the prunable layers.
        imp_density: The same of the round's own masks.
        held: Share of the round's kept |w| that the arm's masks keep; None if they were not made from them.
        dead_rows: Rows without a kept weight, of all prunable layers.
        refused: Layers whose mask stayed unstructured.
        grouped_held: `held` of the other layers alone; None if there are none.
    """

    seed: int
    arm: str
    number: int
    accuracy: float
    density: float
    imp_density: float
    held: float | None
    dead_rows: int
    refused: int
    grouped_held: float | None = None


def train_seed(preset: Preset, lottery: Lottery[Labelled]) -> list[Row]:
    """Find the tickets of one seed and train every arm of the preset; what is done already is read back.

    Args:
        preset: The size of the experiment.
        lottery: The lottery of the seed, open.
    """
    rows = [_make_row(lottery, DENSE, 0, lottery.find_ticket(0), 1.0, None)]
    for ticket in lottery.find_tickets():
        number, density = int(ticket.name.rpartition("-")[2]), measure_density(ticket.masks)
        rows.append(_make_row(lottery, "imp", number, ticket, density, None))
        if number not in preset.at:
            continue
        found = Found(lottery, number, ticket, lottery.build(ticket))
        for arm in preset.arms:
            masks = arm.make(found)
            trained = lottery.train(name_ticket(arm.name, number), masks, arm.start)
            rows.append(_make_row(lottery, arm.name, number, trained, density, masks))
    return rows


def name_ticket(arm: str, number: int) -> str:
    """Return the name of an arm's ticket."""
    return f"{arm}-{number:02d}"


def find_arm_ticket(lottery: Lottery[Labelled], arm: str, number: int) -> Ticket:
    """Return the trained ticket of an arm, which must be there.

    Args:
        lottery: The lottery, open.
        arm: Name of the arm; "imp" for the round's own, "dense" for the dense network.
        number: The round.
    """
    if arm in (DENSE, "imp"):
        return lottery.find_ticket(number)
    return lottery.read(name_ticket(arm, number))


def _make_row(
    lottery: Lottery[Labelled], arm: str, number: int, ticket: Ticket, imp_density: float, masks: Masks | None
) -> Row:
    if ticket.trained.score is None:
        raise ValueError(f"{ticket.name} has no accuracy; the task needs an evaluate function")
    changes = masks.changes if isinstance(masks, ChangedMasks) else ()
    return Row(
        seed=lottery.plan.seed,
        arm=arm,
        number=number,
        accuracy=ticket.trained.score,
        density=measure_density(ticket.masks) if ticket.masks else 1.0,
        imp_density=imp_density,
        held=_find_held(changes),
        dead_rows=count_dead_rows(ticket.masks),
        refused=sum(change.refused for change in changes),
        grouped_held=_find_held([change for change in changes if not change.refused]),
    )


def _find_held(changes: Sequence[MaskChange]) -> float | None:
    before = sum(change.weight_before for change in changes)
    return sum(change.weight_kept for change in changes) / before if before else None


def count_dead_rows(masks: Mapping[str, Tensor]) -> int:
    """Count the rows of all masks that keep nothing."""
    return sum(int((~mask.flatten(1).any(1)).sum()) for mask in masks.values())


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows of one seed, whole or not at all."""
    write_json(path, [dataclasses.asdict(row) for row in rows])


def read_rows(path: Path) -> list[Row]:
    """Read the rows of one seed."""
    return [Row(**row) for row in json.loads(path.read_text())]
