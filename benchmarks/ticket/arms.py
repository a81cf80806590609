"""The arms of the experiment: what becomes of a ticket's masks before they are trained again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

import fxprune
from fxprune.lottery import Lottery, Start, Ticket
from fxprune.lottery.task import Labelled

Masks = Mapping[str, Tensor]


@dataclass(frozen=True)
class Found:
    """A ticket of the rounds, and what the arms make theirs of.

    Attributes:
        lottery: Where it comes from.
        number: Its round.
        ticket: Its masks and training.
        model: Its trained network.
    """

    lottery: Lottery[Labelled]
    number: int
    ticket: Ticket
    model: nn.Module


@dataclass(frozen=True)
class Arm:
    """One way to make a ticket.

    Attributes:
        name: Name in files.
        title: Name in tables.
        make: Makes the masks.
        start: Where the training begins.
        control: Name of the arm with the same masks and new random weights; "" if there is none.
        mask_of: Name of the arm whose masks these are, so that they are compiled once; "" if they are its own.
        regrouped: Whether the masks are row groups.
    """

    name: str
    title: str
    make: Callable[[Found], Masks]
    start: Start = "rewind"
    control: str = ""
    mask_of: str = ""
    regrouped: bool = False


def _keep(found: Found) -> Masks:
    return found.ticket.masks


def _refill(found: Found) -> Masks:
    return fxprune.refill(found.model, found.ticket.masks)


def _refill_plus(found: Found) -> Masks:
    return fxprune.refill(found.model, found.ticket.masks, rate=0.2)


def _regroup_paper(found: Found) -> Masks:
    return fxprune.regroup(found.model, found.ticket.masks, method="paper")


def _regroup_published(found: Found) -> Masks:
    return fxprune.regroup(found.model, found.ticket.masks, method="paper", bug_compat=True)


def _regroup_8(found: Found) -> Masks:
    return fxprune.regroup(found.model, found.ticket.masks, height=8)


def _regroup_16(found: Found) -> Masks:
    return fxprune.regroup(found.model, found.ticket.masks, height=16)


def _regroup_8_global(found: Found) -> Masks:
    return fxprune.regroup(found.model, found.ticket.masks, height=8, budget="global")


def _regroup_as_paper(found: Found) -> Masks:
    """Regroup the layers that the paper's rule groups, each to the density that it stores; leave the others."""
    paper = fxprune.regroup(found.model, found.ticket.masks, method="paper")
    masks: dict[str, Tensor] = dict(paper)
    changes: list[fxprune.MaskChange] = []
    for change in paper.changes:
        if change.refused or not change.nnz_after:
            changes.append(change)
            continue
        before = {change.name: found.ticket.masks[change.name]}
        ours = fxprune.regroup(found.model, before, density=change.density_after)
        masks |= ours
        changes += ours.changes
    return fxprune.ChangedMasks(masks, changes)


def _cut_at_once(found: Found) -> Masks:
    return found.lottery.keep_one_shot(found.number)


def _draw(found: Found) -> Masks:
    return found.lottery.keep_random(found.number)


PAPER, AS_PAPER = "paper", "vectors-16-as-paper"
"""The paper's rule, and the default rule with as many stored weights in the same layers."""

IMP = Arm("imp", "IMP", _keep, control="imp-reinit")

ARMS = (
    Arm("imp-reinit", "IMP, random weights", _keep, "reinit", mask_of="imp"),
    Arm("refill", "refill", _refill),
    Arm("refill-plus", "refill+", _refill_plus),
    Arm(PAPER, "regroup, paper", _regroup_paper, regrouped=True),
    Arm("published", "regroup, published code", _regroup_published, regrouped=True),
    Arm("vectors-8", "regroup 8", _regroup_8, control="vectors-8-reinit", regrouped=True),
    Arm("vectors-8-reinit", "regroup 8, random weights", _regroup_8, "reinit", mask_of="vectors-8"),
    Arm("vectors-16", "regroup 16", _regroup_16, regrouped=True),
    Arm("vectors-8-global", "regroup 8, one budget", _regroup_8_global, regrouped=True),
    Arm(AS_PAPER, "regroup 8, stored as paper", _regroup_as_paper, regrouped=True),
    Arm("one-shot", "one-shot, rewound", _cut_at_once),
    Arm("omp", "one-shot, fine-tuned (OMP)", _cut_at_once, "trained", mask_of="one-shot"),
    Arm("random", "random masks", _draw),
)
"""Every arm that is trained beside the rounds; the tickets of the rounds are `IMP`."""

ALL_ARMS = {arm.name: arm for arm in (IMP, *ARMS)}
