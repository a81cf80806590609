"""A small ticket of the experiment, kept with the code: trained weights, masks and the recipe that found it.

Example:
    python -m benchmarks.ticket.shipped --preset default --arm vectors-8 --round 7
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fxprune
from benchmarks.ticket.arms import ALL_ARMS, IMP, Found
from benchmarks.ticket.network import TicketNet
from benchmarks.ticket.preset import PRESETS, Preset
from benchmarks.ticket.rows import name_ticket
from benchmarks.ticket.worker import find_seed_folder
from fxprune.errors import ArtifactError
from fxprune.lottery import Lottery, Ticket, measure_density

FOLDER = Path(__file__).resolve().parent / "ticket"
"""Where the ticket lies: `weights.safetensors`, `masks.safetensors`, `recipe.json`."""

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, eq=False)
class ShippedTicket:
    """A trained ticket.

    Attributes:
        model: The trained network in eval mode; its pruned weights are zero.
        masks: Its masks.
        arm: Name of the arm that made them.
        number: Its round.
        density: Kept weights over all weights of the prunable layers.
        accuracy: On the test set, in [0, 1].
        dense_accuracy: That of the dense network of the same seed.
        preset: Name of the preset under which it was found.
    """

    model: nn.Module
    masks: dict[str, Tensor]
    arm: str
    number: int
    density: float
    accuracy: float
    dense_accuracy: float
    preset: str

    @property
    def title(self) -> str:
        """What it is, in words."""
        return f"{ALL_ARMS[self.arm].title}, round {self.number}"


def load_ticket(folder: Path = FOLDER) -> ShippedTicket:
    """Load the ticket.

    Args:
        folder: Where it lies.

    Raises:
        ArtifactError: A file is missing.
    """
    for name in ("recipe.json", "weights.safetensors", "masks.safetensors"):
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder / name} is missing; `python -m benchmarks.ticket.shipped` makes it.")
    recipe = json.loads((folder / "recipe.json").read_text())
    model = TicketNet(recipe["widths"], recipe["side"])
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    return ShippedTicket(
        model=model.eval(),
        masks=fxprune.load_masks(folder / "masks.safetensors", model=model),
        **{key: recipe[key] for key in ("arm", "number", "density", "accuracy", "dense_accuracy", "preset")},
    )


def find_ticket(preset: Preset, seed: int, arm: str, number: int, folder: Path) -> tuple[Ticket, Ticket]:
    """Find a ticket of the experiment, or read it back if it was found before.

    Args:
        preset: The size of the experiment.
        seed: The seed.
        arm: Name of the arm.
        number: The round.
        folder: Folder of the experiment.

    Returns:
        The ticket and the dense network.
    """
    with Lottery(preset.make_task(), preset.make_plan(seed), find_seed_folder(folder, seed)) as lottery:
        dense, ticket = lottery.find_ticket(0), lottery.find_ticket(number)
        if arm == IMP.name:
            return ticket, dense
        masks = ALL_ARMS[arm].make(Found(lottery, number, ticket, lottery.build(ticket)))
        return lottery.train(name_ticket(arm, number), masks, ALL_ARMS[arm].start), dense


def write_ticket(folder: Path, preset: Preset, seed: int, ticket: Ticket, dense: Ticket, arm: str, number: int) -> None:
    """Write the files of a ticket.

    Args:
        folder: Where they go.
        preset: The size of the experiment.
        seed: The seed.
        ticket: The ticket.
        dense: The dense network.
        arm: Name of the arm.
        number: The round.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: part.contiguous() for name, part in ticket.trained.state.items()}, folder / "weights.safetensors")
    fxprune.save_masks(folder / "masks.safetensors", ticket.masks)
    train, _ = preset.read_images()
    plan = dataclasses.asdict(preset.make_plan(seed))
    recipe = {
        "arm": arm,
        "number": number,
        "density": measure_density(ticket.masks),
        "accuracy": ticket.trained.score,
        "dense_accuracy": dense.trained.score,
        "data": preset.data,
        "images_per_class": preset.per_class,
        "side": train.pixels.shape[-1],
        "preset": preset.name,
        "widths": preset.widths,
        "plan": plan | {"rewind_epoch": preset.make_plan(seed).rewind},
        "training": dataclasses.asdict(preset.recipe),
    }
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Find a ticket and write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ticket.shipped", description=(__doc__ or "")[:80])
    parser.add_argument("--preset", choices=PRESETS, default="default", help="size of the experiment (default)")
    parser.add_argument("--arm", choices=ALL_ARMS, default="vectors-8", help="arm (vectors-8)")
    parser.add_argument("--round", type=int, default=7, help="round (7)")
    parser.add_argument("--seed", type=int, default=0, help="seed (0)")
    parser.add_argument("--folder", type=Path, help="folder of the experiment (build/ticket/...)")
    parser.add_argument("--output", type=Path, default=FOLDER, help="where the ticket goes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    preset = PRESETS[options.preset]
    folder = options.folder or ROOT / "build" / "ticket" / f"{preset.name}-{preset.recipe.epochs}"
    ticket, dense = find_ticket(preset, options.seed, options.arm, options.round, folder)
    write_ticket(options.output, preset, options.seed, ticket, dense, options.arm, options.round)
    return 0


if __name__ == "__main__":
    sys.exit(main())
