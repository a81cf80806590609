"""Operators that copy elements: repeat, tile, repeat_interleave."""

from __future__ import annotations

from typing import cast

import numpy as np
from torch import fx

from fxprune.channels.facts import Cells, Facts
from fxprune.channels.grid import IntArray, gather, spread
from fxprune.channels.rewriter import Rewriter
from fxprune.channels.rules.base import Rule, is_activation, opaque_cells, pin_inputs
from fxprune.channels.rules.probe import drop_or_fill, moved_ids, number, probe


class RepeatRule(Rule):
    """Every copy has the id of its original."""

    def forward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Take the ids along."""
        if not _is_known(node, facts):
            facts.cells[node] = opaque_cells(node.meta["val"], facts)
            return
        cells = facts.of(_source(node))
        (elements,) = probe(node, number(cells.shape), node.args[1:])
        facts.cells[node] = Cells(tuple(elements.shape), moved_ids(cells, elements, facts))

    def backward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """The ids are the same, or stand for moved ones."""
        if not _is_known(node, facts):
            pin_inputs(node, facts)

    def rewrite(self, node: fx.Node, rewriter: Rewriter) -> None:
        """Copy what is left; the n-th copy of an element is the n-th in the whole result too."""
        if not _is_known(node, rewriter.facts) or rewriter.is_whole(_source(node)):
            rewriter.copy_full(node)
            return
        held = rewriter.held(_source(node))
        if held is None:
            drop_or_fill(node, rewriter)
            return
        cells, result = rewriter.facts.of(_source(node)), rewriter.facts.of(node)
        (whole,) = probe(node, number(cells.shape), node.args[1:])
        (cut,) = probe(node, spread(held, cells.shape, cells.grid), node.args[1:])
        arrangement = gather(_find_copies(whole, cut), result.shape, result.grid)
        if arrangement is None or not rewriter.suffices(node, arrangement):
            rewriter.copy_full(node)
            return
        arguments = (rewriter.made_node(_source(node)), *node.args[1:])
        rewriter.put(node, rewriter.emit(node.target, arguments, node, node.kwargs), arrangement)


def _source(node: fx.Node) -> fx.Node:
    return cast("fx.Node", node.args[0])


def _is_known(node: fx.Node, facts: Facts) -> bool:
    return is_activation(node.args[0]) and node.args[0] in facts.cells


def _find_copies(whole: IntArray, cut: IntArray) -> IntArray:
    """Return where in the whole result each element of the cut one stands.

    Args:
        whole: Element numbers of the original in the shape of the result.
        cut: The same of the cut result.
    """
    places = np.argsort(whole.reshape(-1), kind="stable")
    starts = np.searchsorted(whole.reshape(-1)[places], cut.reshape(-1))
    order = np.argsort(cut.reshape(-1), kind="stable")
    line = cut.reshape(-1)[order]
    copies = np.empty(line.size, dtype=np.int64)
    copies[order] = np.arange(line.size) - np.searchsorted(line, line)
    return np.asarray(places[starts + copies].reshape(cut.shape), dtype=np.int64)
