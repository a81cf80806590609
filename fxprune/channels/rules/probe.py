"""What moving elements does to their ids: an operator is run on numbered elements, which shows where each one goes."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx
from torch.fx.node import Argument

from fxprune.channels.facts import Cells, Facts, Kind
from fxprune.channels.grid import IntArray, Shape, compress
from fxprune.channels.rewriter import Rewriter


def probe(node: fx.Node, elements: IntArray, args: tuple[Argument, ...]) -> list[IntArray]:
    """Run an operator on numbered elements.

    Args:
        node: The node.
        elements: Numbers, in the shape of the input.
        args: The other arguments.

    Returns:
        The numbers in the shape of each result.
    """
    assert callable(node.target)
    result = node.target(torch.from_numpy(np.ascontiguousarray(elements)), *args, **node.kwargs)
    results = [result] if isinstance(result, torch.Tensor) else list(result)
    return [np.asarray(item.numpy()) for item in results]


def number(shape: Shape) -> IntArray:
    """Return the elements of a tensor, numbered."""
    return np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.int64).reshape(shape)


def moved_ids(cells: Cells, elements: IntArray, facts: Facts) -> IntArray:
    """Return the ids of a result whose elements have these numbers in the source."""
    full = np.broadcast_to(cells.ids, cells.shape).reshape(-1)[elements]
    return forget_maps(compress(full), facts)


def forget_maps(ids: IntArray, facts: Facts) -> IntArray:
    """Replace ids that differ over space by new ones of which nothing is known: their plane has moved."""
    mapped = np.asarray(facts.kind[ids] == Kind.MAP)
    if not bool(mapped.any()):
        return ids
    unique, inverse = np.unique(ids[mapped], return_inverse=True)
    fresh = facts.new_ids(unique.shape)
    facts.tie(fresh, unique)
    ids = ids.copy()
    ids[mapped] = fresh[inverse.reshape(-1)]
    facts.moved.append((unique, fresh))
    return ids


def drop_or_fill(node: fx.Node, rewriter: Rewriter) -> None:
    """Let go of a result of which nothing varies; build it from constants if something is still asked of it."""
    if rewriter.suffices(node, np.empty(0, dtype=np.int64)):
        rewriter.drop(node)
    else:
        rewriter.copy_full(node)
