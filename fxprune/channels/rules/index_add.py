"""index_add: one tensor added into some channels of another, as this compiler writes residual additions."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import fx

from fxprune.channels.facts import Cells, Facts, Kind
from fxprune.channels.grid import IntArray
from fxprune.channels.rewriter import Rewriter
from fxprune.channels.rules.base import Rule, is_activation, is_constant, opaque_cells, pin_inputs
from fxprune.nodes import bind, get_tensor


class IndexAddRule(Rule):
    """index_add(x, axis, index, source): channel index[i] of the result is x[index[i]] + source[i]."""

    def forward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Make ids for the result; the base holds the same channels."""
        index = _find_index(gm, node, facts)
        if index is None:
            facts.cells[node] = opaque_cells(node.meta["val"], facts)
            return
        base, source = (facts.of(operand).ids.reshape(-1) for operand in _operands(node))
        ids = facts.new_ids(facts.of(_operands(node)[0]).grid)
        facts.cells[node] = Cells(tuple(node.meta["val"].shape), ids)
        line = ids.reshape(-1)
        facts.tie(line, base)
        known = np.asarray(facts.kind[base] == Kind.CONST)
        known[index] &= facts.kind[source] == Kind.CONST
        values = facts.value[base].copy()
        values[index] += facts.value[source]
        facts.set_constants(line[known], values[known])

    def backward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """An operand's channel is used where the result is used and varies."""
        index = _find_index(gm, node, facts)
        if index is None:
            pin_inputs(node, facts)
            return
        line = facts.of(node).ids.reshape(-1)
        needed = facts.used[line] & facts.varies(line)
        base, source = _operands(node)
        facts.use(facts.of(base).ids.reshape(-1), needed)
        facts.use(facts.of(source).ids.reshape(-1), needed[index])

    def rewrite(self, node: fx.Node, rewriter: Rewriter) -> None:
        """Add what is left of the source into what is left of the base."""
        index = _find_index(rewriter.gm, node, rewriter.facts)
        base, source = _operands(node)
        if index is None or (rewriter.is_whole(base) and rewriter.is_whole(source)):
            rewriter.copy_full(node)
            return
        wanted = rewriter.kept_cells(node)
        if wanted is None:
            rewriter.drop(node)
            return
        held = rewriter.held(base)
        wanted = held if held is not None and rewriter.suffices(node, held) else wanted
        line = wanted.reshape(-1)
        into = np.full(rewriter.facts.of(base).ids.size, -1, dtype=np.int64)
        into[line] = np.arange(line.size)
        chosen = np.flatnonzero(into[index] >= 0)
        if chosen.size == 0:
            rewriter.put(node, rewriter.fetch(base, wanted), wanted)
            return
        axis = rewriter.facts.of(base).axes[0]
        shape = [-1 if other == axis else 1 for other in range(wanted.ndim)]
        x = rewriter.fetch(source, chosen.reshape(shape))
        positions = into[index[chosen]]
        constant = rewriter.constant(f"kept_channels.{node.name}", torch.from_numpy(positions), (positions.tobytes(),))
        arguments = (rewriter.fetch(base, wanted), axis, constant, x)
        rewriter.put(node, rewriter.emit(node.target, arguments, node), wanted)


def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    arguments = bind(node)
    return cast("fx.Node", arguments["self"]), cast("fx.Node", arguments["source"])


def _find_index(gm: fx.GraphModule, node: fx.Node, facts: Facts) -> IntArray | None:
    """Return the constant index; None if the ids are not all on the axis that is indexed, or an index is repeated."""
    arguments = bind(node)
    base, source = _operands(node)
    plain = all(is_activation(operand) and operand in facts.cells for operand in (base, source))
    if not plain or not is_constant(arguments["index"]) or arguments["alpha"] != 1:
        return None
    axis = int(cast("int", arguments["dim"])) % len(facts.of(base).shape)
    if facts.of(base).axes != (axis,) or facts.of(source).axes != (axis,):
        return None
    index = np.asarray(get_tensor(gm, cast("fx.Node", arguments["index"])).cpu().numpy()).astype(np.int64)
    return index if np.unique(index).size == index.size else None
