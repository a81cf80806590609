"""The masks that come out of the passes, by the names under which the user gave them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, fx

from fxprune.graph import read_masks
from fxprune.passes.base import PassRecord

CHANGING = frozenset({"refill", "regroup"})
"""Names of the passes that change masks."""


class FinalMasks:
    """An observer of the passes that reads the masks off the graph once they are final.

    Attributes:
        masks: Masks by the names under which they were given.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        """Start from the masks that were given.

        Args:
            masks: Checked masks.
        """
        self.masks: Mapping[str, Tensor] = masks

    def __call__(self, _index: int, gm: fx.GraphModule, record: PassRecord, /) -> None:
        """Look at the graph after a pass."""
        if record.name in CHANGING:
            self.masks = read_masks(gm, self.masks)
