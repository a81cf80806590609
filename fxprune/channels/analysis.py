"""Find out which channels are known and which nobody needs: one sweep forward, one back. Changes nothing."""

from __future__ import annotations

import torch
from torch import fx

from fxprune.channels.facts import Facts, Moves
from fxprune.channels.rules import find_rule


def analyse(gm: fx.GraphModule) -> Facts:
    """Analyse a captured graph.

    Values flow forward: each node's rule computes which channels of its result do not depend on the input. Use flows
    back from the outputs, and from ids that stand for a moved map to those of the map. Neither depends on the other's
    later results, so one sweep each is enough.

    Args:
        gm: A captured graph with shapes.

    Returns:
        The facts.
    """
    facts, moves = Facts(), dict[fx.Node, Moves]()
    nodes = list(gm.graph.nodes)
    with torch.no_grad():
        for node in nodes:
            rule = find_rule(node, facts)
            if rule is not None:
                rule.forward(gm, node, facts)
            moves[node], facts.moved = facts.moved, []
        for node in reversed(nodes):
            rule = find_rule(node, facts)
            if rule is not None:
                rule.backward(gm, node, facts)
            for old, new in reversed(moves[node]):
                facts.use(old, facts.used[new])
    return facts
