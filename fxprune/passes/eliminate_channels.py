"""Take dead channels out of weights, activations and literal shapes; the output stays the same.

Rewrite:
    conv(relu(conv(x, w1, b1)), w2, b2), row o of w1 zero
        ->
    conv(relu(conv(x, w1 without row o, b1 without o)), w2 without column o, b2 + relu(b1[o]) * sum(w2[:, o]))
    and the same through every operator that `fxprune.channels.rules` knows

Needs:
    weights with exact zeros where the mask is False. Channels that an unknown operator reads stay; so do those that
    must stay beside others. Each of them is a Refusal with the reason.

Source:
    channels.md; the analysis is `fxprune.channels.analysis`, the decisions are `fxprune.channels.plan`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import fx

from fxprune.channels.analysis import analyse
from fxprune.channels.facts import Facts
from fxprune.channels.grid import IntArray
from fxprune.channels.norms import split_norms
from fxprune.channels.packed import split_packed
from fxprune.channels.plan import ChannelPlan, make_plan
from fxprune.channels.record import CUTS_KEY, STATISTICS, LayerCut, compose_all
from fxprune.channels.rewriter import Rewriter
from fxprune.channels.rules import find_rule
from fxprune.errors import PreconditionError
from fxprune.graph import tidy
from fxprune.layer import find_layer
from fxprune.nodes import annotation_of, loosen_views
from fxprune.passes.base import Pass, PassResult, Refusal

ADDS = ("cost", "compact", "align")
"""What may become of operands that hold fewer channels than the result."""


@dataclass(frozen=True)
class EliminateChannels(Pass):
    """Eliminate channels that are constant or unused.

    Attributes:
        round_to: Layers keep a multiple of this many channels, as far as dead ones are left to fill up with.
        adds: "compact": an operand of an addition or a product holds its own channels and is brought together with the
            other one; that makes the fewest multiply-adds. "align": it keeps the channels of the result, as zero rows,
            which cost nothing in a sparse kernel. "cost": whichever is estimated to take less time.
        follow: A record of the same network: the layers in it keep those rows, dead or not, whatever the other options.
    """

    round_to: int = 1
    adds: str = "cost"
    follow: tuple[LayerCut, ...] = ()
    preserves_output: ClassVar[bool] = True

    def requires(self, gm: fx.GraphModule) -> None:
        """Options are in order and every layer is annotated, so that zeros are exact."""
        if self.round_to < 1 or self.adds not in ADDS:
            raise PreconditionError(f"{self!r}: round_to is at least 1, adds is one of {', '.join(map(repr, ADDS))}.")
        for node in gm.graph.nodes:
            if find_layer(node) is not None and annotation_of(node) is None:
                raise PreconditionError(f"Node '{node.name}' has no annotation; run annotate() on the graph first.")

    def apply(self, gm: fx.GraphModule) -> PassResult:
        """Analyse, decide, build the cut graph; again on the cut graph until nothing more goes."""
        modified, refusals = self._eliminate(gm)
        again = modified
        while again:
            tidy(gm)
            again, refusals = self._eliminate(gm)
        return PassResult(modified, refusals)

    def _eliminate(self, gm: fx.GraphModule) -> tuple[bool, tuple[Refusal, ...]]:
        """Do one round; return whether the graph changed, and what stayed."""
        facts = analyse(gm)
        if split_packed(gm, facts):
            tidy(gm)
            facts = analyse(gm)
        plan = self._plan(gm, facts)
        split = split_norms(gm, plan, self._norms_to_follow())
        if split:
            tidy(gm)
            facts = analyse(gm)
            plan = self._plan(gm, facts)
        rewriter = Rewriter(gm, facts, plan.keep)
        with torch.no_grad():
            for node in gm.graph.nodes:
                rule = find_rule(node, facts)
                if rule is not None:
                    rule.rewrite(node, rewriter)
        rewriter.graph.eliminate_dead_code()
        refusals = tuple(_find_refusals(gm, plan))
        gone = {node.name for node in facts.reads} - {cut.layer for cut in rewriter.record}
        if not gone and not _is_smaller(rewriter.record, gm.graph, rewriter.graph):
            return split, refusals
        gm.graph = rewriter.graph
        loosen_views(gm.graph)
        rewriter.store_constants()
        gm.meta.setdefault(CUTS_KEY, []).append(tuple(rewriter.record))
        return True, refusals

    def _plan(self, gm: fx.GraphModule, facts: Facts) -> ChannelPlan:
        return make_plan(gm, facts, round_to=self.round_to, adds=self.adds, follow=self._rows_to_follow(gm))

    def _norms_to_follow(self) -> frozenset[str] | None:
        """Return the layers whose normalisation was split when the record was made."""
        return frozenset(cut.layer for cut in self.follow if STATISTICS in cut.folded) if self.follow else None

    def _rows_to_follow(self, gm: fx.GraphModule) -> dict[str, IntArray] | None:
        """Return which rows of each layer the record keeps, in the numbering of the rounds so far."""
        if not self.follow:
            return None
        so_far, found = compose_all(gm), {}
        for cut in self.follow:
            rows = so_far[cut.layer].rows if cut.layer in so_far else range(cut.out_channels)
            found[cut.layer] = np.flatnonzero(np.isin(np.asarray(rows), cut.rows))
        return found

    def ensures(self, gm: fx.GraphModule) -> None:
        """Shapes and masks are checked by `verify`."""


def _is_smaller(record: list[LayerCut], before: fx.Graph, after: fx.Graph) -> bool:
    """Return whether a layer lost channels or an operator went."""
    cut = any(len(layer.rows) < layer.out_channels or len(layer.channels) < layer.in_channels for layer in record)
    return cut or _count_calls(after) < _count_calls(before)


def _count_calls(graph: fx.Graph) -> int:
    return sum(node.op == "call_function" for node in graph.nodes)


def _find_refusals(gm: fx.GraphModule, plan: ChannelPlan) -> list[Refusal]:
    """Return for every layer why dead channels of it stayed, one line a reason."""
    facts = plan.facts
    found = [Refusal(node.name, reason) for node, reason in facts.notes]
    for node in gm.graph.nodes:
        if node not in facts.reads:
            continue
        ids = facts.of(node).ids.reshape(-1)
        dead = ids[plan.keep[ids] & ~(facts.used[ids] & facts.varies(ids))]
        reasons: dict[str, int] = {}
        for number in plan.sets[dead].tolist():
            reason = plan.reasons.get(number, "a channel tied to it is needed")
            reasons[reason] = reasons.get(reason, 0) + 1
        found += [
            Refusal(node.name, f"{count} of {np.size(ids)} channels are dead and stay: {reason}.")
            for reason, count in reasons.items()
        ]
    return found
