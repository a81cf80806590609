"""Embeddings: a column that is equal in all rows is a constant; columns can be cut."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import fx

from fxprune.channels.facts import Cells, Facts
from fxprune.channels.rewriter import Rewriter
from fxprune.channels.rules.base import Rule, constant_of, is_constant, opaque_cells, pin_inputs
from fxprune.nodes import get_tensor


class EmbeddingRule(Rule):
    """embedding(weight [V, D], indices) gives [..., D]."""

    def forward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Give every column an id."""
        value, weight = node.meta["val"], cast("fx.Node", node.args[0])
        if not is_constant(weight):
            facts.cells[node] = opaque_cells(value, facts)
            return
        ids = facts.new_ids((*[1] * (value.ndim - 1), value.shape[-1]))
        table = constant_of(gm, weight)
        flat = np.asarray((table == table[:1]).all(dim=0).cpu().numpy())
        line = ids.reshape(-1)
        facts.set_constants(line[flat], np.asarray(table[0].cpu().numpy())[flat])
        facts.cells[node] = Cells(tuple(value.shape), ids)

    def backward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """The indices are always read."""
        pin_inputs(node, facts)

    def rewrite(self, node: fx.Node, rewriter: Rewriter) -> None:
        """Take the columns that stay."""
        weight = cast("fx.Node", node.args[0])
        if not is_constant(weight):
            rewriter.copy_full(node)
            return
        kept = rewriter.kept_cells(node)
        if kept is None:
            rewriter.drop(node)
            return
        columns = kept.reshape(-1)
        tensor = get_tensor(rewriter.gm, weight)
        if columns.size < tensor.shape[1]:
            tensor = tensor.detach().index_select(1, torch.from_numpy(columns))
        cut = () if columns.size == rewriter.facts.of(node).ids.size else (columns.tobytes(),)
        new_weight = rewriter.constant(str(weight.target), tensor, cut)
        rest = tuple(rewriter.argument(argument) for argument in node.args[1:])
        rewriter.put(node, rewriter.emit(node.target, (new_weight, *rest), node, node.kwargs), kept)
