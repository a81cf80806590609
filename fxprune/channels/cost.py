"""What dead channels cost where they stay, and what it costs to bring tensors together where they left.

One unit for both: multiply-adds. Moving a byte takes as long as half a multiply-add, `index_add` as long as 2,600 more
for every channel that it adds: measured with torch 2.15 on one core with AVX-512, 92 GB/s for an addition in the cache,
47 GMAC/s for 1x1 convolutions, 55 ns an index; torch needs about 2 us to call an operator, as long as 100,000. Only the
order of magnitude counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import fx

from fxprune.channels.facts import Cells, Completion, Facts, Join
from fxprune.channels.fold import group_width, multiplier
from fxprune.channels.grid import BoolArray, IntArray
from fxprune.channels.rules.layer import input_ids
from fxprune.channels.spatial import FloatArray
from fxprune.layer import Layer

_MACS_A_BYTE = 0.5
_MACS_AN_INDEX = 2600.0
_MACS_AN_OPERATOR = 1e5
_VIEWS = frozenset(
    getattr(torch.ops.aten, name)
    for name in ("view", "_unsafe_view", "permute", "transpose", "t", "squeeze", "unsqueeze", "expand", "select")
)


def find_weights(facts: Facts, layers: Sequence[Layer]) -> FloatArray:
    """Return for every id what it costs to keep it, in multiply-adds: its row and column, one write and one read."""
    weights = np.zeros(facts.kind.size)
    for node, cells in facts.cells.items():
        if not isinstance(cells, Cells) or node.op != "call_function" or _is_view(node):
            continue
        np.add.at(weights, cells.ids.reshape(-1), 2 * _move_one(node, cells))
    needed = facts.used & facts.varies(np.arange(facts.kind.size))
    for layer in layers:
        source = facts.of(layer.input)
        rows: IntArray = facts.of(layer.node).ids.reshape(layer.groups, -1)
        if source.ids.size == 1:
            inputs_left = np.full(layer.groups, group_width(layer))
        else:
            inputs: IntArray = input_ids(layer, source).reshape(layer.groups, -1)
            inputs_left = needed[inputs].sum(axis=1)
            share = _macs_of_one(layer) * needed[rows].sum(axis=1)
            np.add.at(weights, inputs, np.broadcast_to(share[:, None], inputs.shape))
        share = _macs_of_one(layer) * inputs_left
        np.add.at(weights, rows, np.broadcast_to(share[:, None], rows.shape))
    return weights


def _macs_of_one(layer: Layer) -> float:
    """Return the multiply-adds of one row and one input channel."""
    return layer.macs / (layer.groups * multiplier(layer) * group_width(layer))


def _is_view(node: fx.Node) -> bool:
    return getattr(node.target, "overloadpacket", None) in _VIEWS


def _move_one(node: fx.Node, cells: Cells) -> float:
    """Return what it costs to write one channel of a tensor."""
    value = node.meta["val"]
    return float(value.numel() / cells.ids.size * value.element_size() * _MACS_A_BYTE)


def weigh_join(facts: Facts, join: Join, keep: BoolArray) -> float:
    """Return what an addition costs more if its operands hold their own channels only.

    One `index_add` into a copy of the larger operand if that holds all channels of the sum; else both are completed and
    put in order.
    """
    needed = facts.used[join.result] & facts.varies(join.result)
    total = int(needed.sum())
    less, more = sorted(int((needed & keep[ids]).sum()) for ids in join.operands)
    one = _move_one(join.node, facts.of(join.node))
    if more < total:
        return one * 8 * total  # two cats and two index_selects, each reads and writes it
    return one * max(0, 2 * more + 3 * less - 3 * total) + _MACS_AN_INDEX * less


def weigh_completion(facts: Facts, item: Completion, lacking: int) -> float:
    """Return what it costs to put constants beside what is left of a tensor, or to take a part out of it: one copy."""
    cells = facts.of(item.source)
    return _move_one(item.source, cells) * (2 * cells.ids.size - lacking)


def weigh_norm(node: fx.Node, width: int) -> float:
    """Return what it costs more to normalise `width` channels by single operators than all by one: calls and copies."""
    value = node.meta["val"]
    one = value.numel() / value.shape[-1] * value.element_size() * _MACS_A_BYTE
    return float(14 * _MACS_AN_OPERATOR + one * max(0, 5 * width - 2 * value.shape[-1]))


def find_lacking(facts: Facts, join: Join, keep: BoolArray) -> IntArray:
    """Return the ids of operands that are gone though the sum has the channel."""
    needed = facts.used[join.result] & facts.varies(join.result)
    return np.concatenate([ids[needed & ~keep[ids]] for ids in join.operands])
