"""Regroup every mask that has scores: row groups instead of single cells.

Rewrite:
    conv(x, w), mask m, scores s    ->    conv(x, where(m', w, 0)), mask m'
    where the rows of m' form groups that share their columns, chosen to hold as much of s as the budget allows; the
    weights that come back have the values of the user's model

Needs:
    annotations with scores; `annotate` puts them there. Depthwise and transposed convolutions, layers of less than four
    rows, and with the paper's rule small layers, are refused and keep their masks.

Source:
    method.md, section 5, of this project; the paper's rule is algorithm 3 of "Coarsening the Granularity" (arXiv
    2202.04736). `fxprune.structure.vectors` and `fxprune.structure.paper` say where they differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import fx

from fxprune.passes.base import Pass, PassResult
from fxprune.passes.change_masks import Memo, change_masks, check_final, check_pending
from fxprune.structure.regroup import RegroupRule, VectorRule, regroup_layers


@dataclass(frozen=True)
class Regroup(Pass):
    """Keep row groups.

    Attributes:
        rule: How the groups are found: by vectors under a budget, or by the paper's rule.
        memo: Results of earlier runs on the same masks.
    """

    rule: RegroupRule = field(default_factory=VectorRule)
    memo: Memo = field(default_factory=dict, repr=False, compare=False)
    preserves_output: ClassVar[bool] = False

    def requires(self, gm: fx.GraphModule) -> None:
        """Every layer is annotated, no mask to be changed has row groups."""
        check_pending(gm, self.name)

    def apply(self, gm: fx.GraphModule) -> PassResult:
        """Change the masks and write the zeros."""
        return change_masks(gm, lambda cells: regroup_layers(cells, self.rule), self.memo)

    def ensures(self, gm: fx.GraphModule) -> None:
        """Every mask is final; that its weight has the zeros is a rule of `verify`."""
        check_final(gm)
