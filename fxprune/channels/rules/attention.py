"""Fused attention: which dimensions of query, key and value go.

A dimension of query and key goes where the query is 0, and where the key is any constant: it adds one number to a row
of logits, which the softmax takes away again. A constant query dimension stays. A constant value dimension passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
from torch import fx
from torch.fx.node import Argument

from fxprune.channels.facts import Cells, Facts, Kind
from fxprune.channels.grid import BoolArray, IntArray, Shape, arrange, project
from fxprune.channels.rewriter import Rewriter
from fxprune.channels.rules.base import Rule, is_activation, is_constant, opaque_cells, pin_inputs
from fxprune.nodes import bind


@dataclass(frozen=True, eq=False)
class _Heads:
    """Query, key and value with their ids, [..., 1, E]; the axes in front are those of the heads."""

    query: fx.Node
    key: fx.Node
    value: fx.Node
    masked: bool
    grid: Shape


class AttentionRule(Rule):
    """softmax(s q k^T) v: a known value dimension passes, for the rows of the softmax sum to 1."""

    def forward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Make ids for the result, one for each value dimension of each head."""
        heads = _find_heads(node, facts)
        if heads is None:
            facts.cells[node] = opaque_cells(node.meta["val"], facts)
            return
        facts.tie(facts.of(heads.query).ids, facts.of(heads.key).ids)
        ids = facts.new_ids(heads.grid)
        facts.cells[node] = Cells(tuple(node.meta["val"].shape), ids)
        value = np.broadcast_to(facts.of(heads.value).ids, heads.grid)
        known = np.asarray(facts.kind[value] == Kind.CONST)
        if heads.masked:  # a row that is masked entirely gives 0, not the constant
            known &= facts.value[value] == 0
        facts.set_constants(ids[known], facts.value[value[known]])
        if facts.of(heads.value).grid == heads.grid:
            facts.tie(ids, value)

    def backward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """A query dimension is used if its head is and the key is not 0 there; a value dimension if its result is."""
        heads = _find_heads(node, facts)
        if heads is None:
            pin_inputs(node, facts)
            return
        ids = facts.of(node).ids
        needed = facts.used[ids] & facts.varies(ids)
        facts.use(facts.of(heads.value).ids, _reduce(needed, facts.of(heads.value).grid))
        head = np.asarray(needed.any(axis=-1, keepdims=True))
        query, key = facts.of(heads.query).ids, facts.of(heads.key).ids
        live = np.broadcast_to(head, [*head.shape[:-1], query.shape[-1]])
        facts.use(query, _reduce(live & ~(facts.kind[key] == Kind.CONST), query.shape))
        facts.use(key, _reduce(live & ~facts.is_zero(query), key.shape))

    def rewrite(self, node: fx.Node, rewriter: Rewriter) -> None:
        """Emit with an explicit scale, the one of the original head size."""
        heads = _find_heads(node, rewriter.facts)
        if heads is None:
            rewriter.copy_full(node)
            return
        if rewriter.kept_cells(node) is None:
            rewriter.drop(node)
            return
        held = rewriter.held(heads.value)
        plan = None if held is None else _plan_query(heads, held, rewriter)
        if held is None or plan is None:
            rewriter.copy_full(node)
            return
        arguments: dict[str, Argument] = {name: rewriter.argument(value) for name, value in _others(node).items()}
        if arguments.get("scale") is None:
            arguments["scale"] = 1.0 / math.sqrt(heads.query.meta["val"].shape[-1])
        arguments["query"], arguments["key"] = rewriter.fetch(heads.query, plan), rewriter.fetch(heads.key, plan)
        arguments["value"] = rewriter.made_node(heads.value)
        rewriter.put(node, rewriter.emit_like(node, arguments), held)


def _others(node: fx.Node) -> dict[str, Argument]:
    return {name: value for name, value in bind(node).items() if name not in ("query", "key", "value")}


def _find_heads(node: fx.Node, facts: Facts) -> _Heads | None:
    arguments = bind(node)
    sources = [arguments[name] for name in ("query", "key", "value")]
    if not all(is_activation(source) and source in facts.cells for source in sources):
        return None
    query, key, value = cast("tuple[fx.Node, fx.Node, fx.Node]", tuple(sources))
    mask = arguments.get("attn_mask")
    plain_mask = mask is None or is_constant(mask)
    grids = [facts.of(source).grid for source in (query, key, value)]
    on_rows = any(grid[-2] > 1 for grid in grids)
    if bool(arguments.get("enable_gqa")) or not plain_mask or on_rows or grids[0] != grids[1]:
        return None
    if grids[0][:-1] != grids[2][:-1]:
        return None
    return _Heads(query, key, value, mask is not None, grids[2])


def _reduce(needed: BoolArray, grid: Shape) -> BoolArray:
    """Return a bool array of a smaller grid: True where any of the cells is."""
    axes = tuple(axis for axis, size in enumerate(grid) if size < needed.shape[axis])
    return np.asarray(needed.any(axis=axes, keepdims=True))


def _plan_query(heads: _Heads, value: IntArray, rewriter: Rewriter) -> IntArray | None:
    """Return the arrangement of query and key for the heads that the value holds; None if they do not fit."""
    cells = rewriter.facts.of(heads.query)
    front = (*cells.grid[:-1], 1)
    wanted = project(value, heads.grid, front)
    if wanted is None:
        return None
    chosen = np.zeros(front, dtype=bool).reshape(-1)
    chosen[wanted.reshape(-1)] = True
    inside = np.broadcast_to(chosen.reshape(front), cells.grid)
    found = arrange(rewriter.keep[cells.ids] & inside)
    if found is None or found.size == 0:
        found = arrange(inside)
    if found is None:
        return None
    heads_found = project(found, cells.grid, front)
    return found if heads_found is not None and np.array_equal(heads_found, wanted) else None
