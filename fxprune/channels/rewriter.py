"""Reads inputs of the cut model in the arrangement that an operator wants."""

from __future__ import annotations

import numpy as np
from torch import fx
from torch.fx.node import Argument, map_arg

from fxprune.channels.adapt import adapt
from fxprune.channels.emitter import Emitter
from fxprune.channels.facts import Cells
from fxprune.channels.grid import IntArray, all_cells
from fxprune.nodes import get_tensor


class Rewriter(Emitter):
    """The growing graph, with the ways to read what stands in it."""

    def argument(self, value: Argument) -> Argument:
        """Return an argument for the new graph: whole tensors, constants, plain values."""
        return map_arg(value, self.fetch_full)

    def fetch_full(self, old: fx.Node) -> fx.Node:
        """Return a node that holds a tensor with all its original channels."""
        if old.op == "get_attr":
            return self.constant(str(old.target), get_tensor(self.gm, old), ())
        cells = self.facts.cells.get(old)
        if not isinstance(cells, Cells):
            return self.made_node(old)
        return self.fetch(old, all_cells(cells.grid))

    def fetch(self, old: fx.Node, wanted: IntArray) -> fx.Node:
        """Return a node that holds a tensor in the wanted arrangement.

        Channels that are gone come back as their constants; those that nobody uses come back as 0.
        """
        held = self.held(old)
        if held is not None and np.array_equal(held, wanted):
            return self.made_node(old)
        return adapt(self, old, wanted)

    def copy_full(self, node: fx.Node) -> None:
        """Emit a node as it was, with whole inputs."""
        new = self.graph.node_copy(node, self.fetch_full)
        cells = self.facts.cells.get(node)
        if isinstance(cells, Cells):
            self.put(node, new, all_cells(cells.grid))
        elif cells is not None:
            self.put_items(node, new, [all_cells(item.grid) for item in cells])
        else:
            self.nodes[node] = new
