"""Refill every mask that has scores: whole rows instead of single cells.

Rewrite:
    conv(x, w), mask m, scores s    ->    conv(x, where(m', w, 0)), mask m'
    where m' keeps as many whole rows as the cells of m would fill, those with the largest sum of s; the weights that
    come back have the values of the user's model

Needs:
    annotations with scores; `annotate` puts them there. Transposed convolutions are refused and keep their masks.

Source:
    "Coarsening the Granularity" (arXiv 2202.04736), section 3.2; `fxprune.structure.refill` says where it differs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import fx

from fxprune.passes.base import Pass, PassResult
from fxprune.passes.change_masks import Memo, change_masks, check_final, check_pending
from fxprune.structure.refill import RefillRule, refill_layers


@dataclass(frozen=True)
class Refill(Pass):
    """Keep whole rows.

    Attributes:
        rule: How many rows of a layer survive; a rate of 0.2 is the paper's refill+.
        memo: Results of earlier runs on the same masks.
    """

    rule: RefillRule = field(default_factory=RefillRule)
    memo: Memo = field(default_factory=dict, repr=False, compare=False)
    preserves_output: ClassVar[bool] = False

    def requires(self, gm: fx.GraphModule) -> None:
        """Every layer is annotated, no mask to be changed has row groups."""
        check_pending(gm, self.name)

    def apply(self, gm: fx.GraphModule) -> PassResult:
        """Change the masks and write the zeros."""
        return change_masks(gm, lambda cells: refill_layers(cells, self.rule), self.memo)

    def ensures(self, gm: fx.GraphModule) -> None:
        """Every mask is final; that its weight has the zeros is a rule of `verify`."""
        check_final(gm)
