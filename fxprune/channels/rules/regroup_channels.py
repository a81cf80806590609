"""Operators that make one channel of several: pixel_shuffle and glu."""

from __future__ import annotations

from typing import cast

import numpy as np
from torch import fx

from fxprune.channels.facts import Cells, Facts, Kind
from fxprune.channels.grid import BoolArray, IntArray
from fxprune.channels.rewriter import Rewriter
from fxprune.channels.rules.base import Rule, is_activation, opaque_cells, pin_inputs
from fxprune.channels.spatial import FloatArray
from fxprune.nodes import bind


class SeveralRule(Rule):
    """Result channel c is made of some input channels, which are tied to it and to each other."""

    def forward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Make an id for every result channel."""
        table = self._find_table(node, facts)
        if table is None:
            facts.cells[node] = opaque_cells(node.meta["val"], facts)
            return
        value = node.meta["val"]
        axis = self.axis(node)
        ids = facts.new_ids(tuple(len(table) if other == axis else 1 for other in range(value.ndim)))
        facts.cells[node] = Cells(tuple(value.shape), ids)
        line, sources = ids.reshape(-1), facts.of(_source(node)).ids.reshape(-1)[table]
        facts.tie(line[:, None], sources)
        known, values = self.values(facts, sources)
        facts.set_constants(line[known], values[known])

    def backward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """All channels of a used result are used."""
        table = self._find_table(node, facts)
        if table is None:
            pin_inputs(node, facts)
            return
        line = facts.of(node).ids.reshape(-1)
        needed = facts.used[line] & facts.varies(line)
        facts.use(facts.of(_source(node)).ids.reshape(-1)[table[needed]])

    def rewrite(self, node: fx.Node, rewriter: Rewriter) -> None:
        """Read the channels of the results that stay."""
        table, source = self._find_table(node, rewriter.facts), _source(node)
        if table is None:
            rewriter.copy_full(node)
            return
        kept = rewriter.kept_cells(node)
        if kept is None:
            rewriter.drop(node)
            return
        wanted = self.order(table[kept.reshape(-1)])
        axis = self.axis(node)
        x = rewriter.fetch(source, wanted.reshape([-1 if other == axis else 1 for other in range(kept.ndim)]))
        rewriter.put(node, rewriter.emit(node.target, (x, *node.args[1:]), node, node.kwargs), kept)

    def axis(self, node: fx.Node) -> int:
        """Return the axis of the channels."""
        raise NotImplementedError

    def table(self, node: fx.Node) -> IntArray:
        """Return the input channels of every result channel, [results, inputs of one]."""
        raise NotImplementedError

    def order(self, table: IntArray) -> IntArray:
        """Return the input channels in the operator's order, from some rows of the table."""
        raise NotImplementedError

    def values(self, facts: Facts, sources: IntArray) -> tuple[BoolArray, FloatArray]:
        """Return which results are known, and their values."""
        raise NotImplementedError

    def _find_table(self, node: fx.Node, facts: Facts) -> IntArray | None:
        """Return the table; None if the ids of the input are not all on the channel axis."""
        source = node.args[0]
        if not is_activation(source) or source not in facts.cells:
            return None
        return self.table(node) if facts.of(_source(node)).axes == (self.axis(node),) else None


def _source(node: fx.Node) -> fx.Node:
    return cast("fx.Node", node.args[0])


class PixelShuffleRule(SeveralRule):
    """pixel_shuffle by r: r * r channels become one; it is known if all of them have one value."""

    def axis(self, node: fx.Node) -> int:
        """Return the third axis from the end."""
        return int(node.meta["val"].ndim) - 3

    def table(self, node: fx.Node) -> IntArray:
        """Return r * r channels in a row for each result."""
        factor = cast("int", node.args[1])
        channels = int(node.meta["val"].shape[self.axis(node)])
        return np.arange(channels * factor * factor).reshape(channels, -1)

    def order(self, table: IntArray) -> IntArray:
        """Return row after row."""
        return table.reshape(-1)

    def values(self, facts: Facts, sources: IntArray) -> tuple[BoolArray, FloatArray]:
        """Return the value that all channels share."""
        values = facts.value[sources]
        known = (facts.kind[sources] == Kind.CONST).all(axis=1) & (values == values[:, :1]).all(axis=1)
        return np.asarray(known), values[:, 0]


class GluRule(SeveralRule):
    """glu: a * sigmoid(b), a and b being the halves of the channels; 0 where a is 0."""

    def axis(self, node: fx.Node) -> int:
        """Return the axis that is halved."""
        return int(cast("int", bind(node).get("dim", -1))) % int(node.meta["val"].ndim)

    def table(self, node: fx.Node) -> IntArray:
        """Return c and c + C / 2 for each result c."""
        half = int(node.meta["val"].shape[self.axis(node)])
        return np.arange(2 * half).reshape(2, half).T

    def order(self, table: IntArray) -> IntArray:
        """Return the first half, then the second."""
        return table.T.reshape(-1)

    def values(self, facts: Facts, sources: IntArray) -> tuple[BoolArray, FloatArray]:
        """Return the product of constants, and 0 where the first half is 0."""
        first, second = sources.T
        both = (facts.kind[first] == Kind.CONST) & (facts.kind[second] == Kind.CONST)
        values = facts.value[first] / (1.0 + np.exp(-facts.value[second]))
        zero = facts.is_zero(first)
        return np.asarray(both | zero), np.where(zero, 0.0, values)
