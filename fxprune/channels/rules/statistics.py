"""Normalisation: what a channel's own statistics make of a constant, and why shared statistics read everything."""

from __future__ import annotations

from typing import cast

import numpy as np
from torch import fx

from fxprune.channels.facts import Cells, Completion, Facts, Kind
from fxprune.channels.grid import IntArray
from fxprune.channels.rules.base import Rule, constant_of, is_constant, list_cells, set_opaque
from fxprune.channels.rules.passing_values import normalise
from fxprune.channels.spatial import FloatArray
from fxprune.nodes import bind


class SharedStatisticsRule(Rule):
    """layer_norm, rms_norm, group_norm: each channel changes the mean or the variance of all others.

    Channels that are known can leave the tensor: they come back before the operator, which counts all of them.
    """

    def forward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """All results vary; say which channels of the input need not be computed."""
        set_opaque(node, facts)
        source = cast("fx.Node", node.args[0])
        cells = facts.cells.get(source)
        if not isinstance(cells, Cells):
            return
        known = cells.ids[~facts.varies(cells.ids)]
        if known.size:
            whole = np.broadcast_to(facts.of(node).ids.reshape(-1), known.shape)
            facts.completions.append(Completion(node, source, whole, known, explain(node, source)))

    def backward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Everything is read; what varies stays."""
        for source in node.all_input_nodes:
            for cells in list_cells(source, facts):
                varies = facts.varies(cells.ids)
                facts.use(cells.ids)
                facts.pin(cells.ids[varies], explain(node, source))


def explain(node: fx.Node, source: fx.Node) -> str:
    """Return why channels that do not vary stay before a normalisation."""
    return f"{node.name} takes its statistics over the channels of {source.name}, dead or not"


def axes_of_instance(node: fx.Node) -> tuple[int, ...]:
    """Name the axes over which instance normalisation takes its own statistics; none if it has running ones."""
    rank = cast("fx.Node", node.args[0]).meta["val"].ndim
    return tuple(range(2, rank)) if bind(node)["use_input_stats"] else ()


def axes_of_batch(node: fx.Node) -> tuple[int, ...]:
    """Name the axes over which batch normalisation takes the statistics of its input: all but the channels."""
    rank = cast("fx.Node", node.args[0]).meta["val"].ndim
    return (0, *range(2, rank))


def normalise_instance(gm: fx.GraphModule, node: fx.Node, facts: Facts, sources: IntArray, results: IntArray) -> None:
    """Without running statistics a constant plane becomes beta; with them it is a batch normalisation."""
    if bind(node)["use_input_stats"]:
        normalise_plane(gm, node, facts, sources, results)
    else:
        normalise(gm, node, facts, sources, results)


def normalise_plane(gm: fx.GraphModule, node: fx.Node, facts: Facts, sources: IntArray, results: IntArray) -> None:
    """A constant plane minus its mean is 0, so beta is left; gamma = 0 gives beta whatever the input."""
    if sources.size != cast("fx.Node", node.args[0]).meta["val"].shape[1]:
        return
    arguments = bind(node)
    gamma, beta = _numbers(gm, arguments["weight"], 1.0, sources), _numbers(gm, arguments["bias"], 0.0, sources)
    if gamma is None or beta is None:
        return
    flat = (facts.kind[sources] == Kind.CONST) | (gamma == 0)
    facts.set_constants(results[flat], beta[flat])


def _numbers(gm: fx.GraphModule, argument: object, default: float, like: IntArray) -> FloatArray | None:
    """Return a parameter's numbers; the default if there is none, None if it is no constant."""
    if argument is None:
        return np.full(like.size, default)
    if not is_constant(argument):
        return None
    return np.asarray(constant_of(gm, cast("fx.Node", argument)).cpu().numpy())
