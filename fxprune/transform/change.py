"""What changed when masks were refilled or regrouped: one record a layer, and the sentence for the report."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fxprune.masks.names import find_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskChange:
    """How the mask of one weight changed.

    Attributes:
        name: The weight's name.
        cells: Cells of the weight.
        nnz_before: Kept cells before.
        nnz_after: Kept cells after.
        revived: Cells that are kept now and were not.
        weight_before: Sum of |w| that the old mask keeps.
        weight_kept: Sum of |w| that both masks keep.
        weight_revived: Sum of |w| of the revived cells; 0 if the model holds zeros there.
        heights: Number of row groups of each height, of a regrouped mask.
        reason: Why the mask stayed as it was, or what else is worth knowing; None if all went as asked.
        refused: The mask stayed as it was, for that reason.
    """

    name: str
    cells: int
    nnz_before: int
    nnz_after: int
    revived: int
    weight_before: float
    weight_kept: float
    weight_revived: float
    heights: Mapping[int, int]
    reason: str | None
    refused: bool

    @property
    def density_before(self) -> float:
        """Kept cells over all cells, before."""
        return self.nnz_before / max(1, self.cells)

    @property
    def density_after(self) -> float:
        """Kept cells over all cells, after."""
        return self.nnz_after / max(1, self.cells)

    @property
    def kept_share(self) -> float:
        """Share of the old mask's |w| that the new mask keeps, in [0, 1]; 1 if there was none."""
        return self.weight_kept / self.weight_before if self.weight_before > 0 else 1.0


class ChangedMasks(dict[str, Tensor]):
    """New masks by weight name (bool, True = kept), with a record of what changed.

    Attributes:
        changes: One record a weight, in the order of the masks.
    """

    def __init__(self, masks: Mapping[str, Tensor], changes: Iterable[MaskChange]) -> None:
        """Make a result.

        Args:
            masks: The new masks.
            changes: Their records.
        """
        super().__init__(masks)
        self.changes = tuple(changes)

    @property
    def refusals(self) -> dict[str, str]:
        """Why the masks that stayed as they were did, by weight name."""
        return {change.name: change.reason for change in self.changes if change.refused and change.reason}

    def __str__(self) -> str:
        return describe_change(self.changes)


def measure_change(
    name: str,
    weight: Tensor,
    before: Tensor,
    after: Tensor,
    *,
    heights: Mapping[int, int],
    reason: str | None,
    refused: bool,
) -> MaskChange:
    """Compare the masks of one weight.

    Args:
        name: The weight's name.
        weight: Its values.
        before: The old mask.
        after: The new mask.
        heights: Number of row groups of each height.
        reason: What there is to say.
        refused: Whether the mask stayed as it was for that reason.
    """
    size = weight.detach().cpu().abs().double()
    revived = after & ~before
    return MaskChange(
        name=name,
        cells=before.numel(),
        nnz_before=int(before.sum()),
        nnz_after=int(after.sum()),
        revived=int(revived.sum()),
        weight_before=float(size[before].sum()),
        weight_kept=float(size[before & after].sum()),
        weight_revived=float(size[revived].nan_to_num(0.0, 0.0, 0.0).sum()),
        heights=dict(heights),
        reason=reason,
        refused=refused,
    )


def describe_change(changes: Iterable[MaskChange]) -> str:
    """Return what changed in all layers in one sentence: kept and dropped |w|, revived cells, density."""
    items = tuple(changes)
    weight, cells = sum(item.weight_before for item in items), sum(item.cells for item in items)
    kept = 100 * (sum(item.weight_kept for item in items) / weight if weight > 0 else 1.0)
    before = sum(item.nnz_before for item in items) / max(1, cells)
    after = sum(item.nnz_after for item in items) / max(1, cells)
    revived = sum(item.revived for item in items)
    return (
        f"kept {kept:.1f} % of the masks' |w|, dropped {100 - kept:.1f} %, revived {revived} weights, "
        f"density {before:.3f} -> {after:.3f}"
    )


def describe_structure(
    structure: str,
    model: nn.Module | ExportedProgram | fx.GraphModule,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
) -> str:
    """Return the first line of the report: whether the function changed, and by how much.

    Args:
        structure: The argument of `compile`.
        model: The user's model.
        before: The masks that were given.
        after: The masks that were compiled.
    """
    if structure == "exact":
        return "exact: the result equals the masked model"
    if all(torch.equal(mask, after[name]) for name, mask in before.items()):
        return f"{structure}: no mask changed, the result equals the masked model"
    weights = find_weights(model).tensors
    changes = [
        measure_change(name, weights[name], mask, after[name], heights={}, reason=None, refused=False)
        for name, mask in before.items()
    ]
    return f"{structure}: the function changed: {describe_change(changes)}; retrain with compiled.masks"


def log_change(what: str, masks: ChangedMasks) -> None:
    """Say what changed in one line, and in a second one, a warning, how many masks stayed as they were.

    Args:
        what: "refill" or "regroup".
        masks: The result.
    """
    logger.info("%s: %s", what, masks)
    for name, reason in masks.refusals.items():
        logger.debug("%s left %s as it was: %s", what, name, reason)
    if masks.refusals:
        name, reason = next(iter(masks.refusals.items()))
        logger.warning(
            "%s left %d of %d masks as they were: %s: %s", what, len(masks.refusals), len(masks), name, reason
        )
