"""Pools next to kernels, without a copy: with images in the place of channels torch takes "chwn" for channels-last.

    pool(y)    becomes    transpose(pool(transpose(y)))        # both transposes are views

A pool works on every channel of every image alike, so the two axes may change places. A kernel's output [N, C, H, W]
lies [C][H][W][N]; seen as [C, N, H, W] it is what torch calls channels-last, and so is what the pool returns.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx

_aten = torch.ops.aten
_POOLS = frozenset({_aten.max_pool2d.default, _aten.avg_pool2d.default, _aten.adaptive_avg_pool2d.default})


def swap_around_pools(graph: fx.Graph, launches: Collection[fx.Node]) -> None:
    """Let every pool of batches that reads what a kernel made, or what such a pool made, work on swapped axes.

    Args:
        graph: The lowered graph, changed in place.
        launches: The kernels' nodes.
    """
    lies_swapped = set(launches)
    for node in list(graph.nodes):
        if node.target not in _POOLS or node.args[0] not in lies_swapped or node.args[0].meta["val"].ndim != 4:
            continue
        with graph.inserting_before(node):
            before = graph.call_function(_aten.transpose.int, (node.args[0], 0, 1))
        with graph.inserting_after(node):
            after = graph.call_function(_aten.transpose.int, (node, 0, 1))
        after.meta = dict(node.meta)
        node.replace_all_uses_with(after, delete_user_cb=lambda user, own=after: user is not own)
        node.args = (before, *node.args[1:])
        lies_swapped.add(after)
