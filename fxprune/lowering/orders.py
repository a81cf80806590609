"""In which order every activation lies, channels-last or as planes: the cheapest choice for the whole graph.

Every node writes its result in one order and reads its inputs in the same one; a tensor that some reader wants in the
other order is copied once, for all of them. The sum of the times of the nodes and of the copies is the capacity of a
cut between the nodes of the two orders, so the cheapest choice is a minimum cut. Along a chain of layers that is a
shortest path; residual additions and branches make it more.
Source: `D. M. Greig, B. T. Porteous, A. H. Seheult, Exact Maximum A Posteriori Estimation for Binary Images, J. Royal
Statistical Society B 51, 1989`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import networkx
import torch
from torch import fx

Order = Literal["rows", "pixels"]
"""Channels-last or planes, by the family of kernels that computes in it."""

_PLANES, _LAST = "planes", "channels-last"
"""Ends of the flow."""


def choose_orders(
    graph: fx.Graph, times_us: Mapping[fx.Node, Mapping[Order, float]], copy_us: Callable[[fx.Node], float]
) -> dict[fx.Node, Order]:
    """Return the order of every layer that makes the sum of all layers and all copies least; channels-last in a tie.

    Args:
        graph: The graph.
        times_us: Time of every layer in each order, microseconds; a missing order is out of the question.
        copy_us: Time to copy a node's result into the other order.
    """
    flow = networkx.DiGraph()
    flow.add_nodes_from((_PLANES, _LAST))
    vertices = activations(graph)
    for node in vertices:
        times: Mapping[Order, float] = times_us.get(node, {"rows": 0.0, "pixels": 0.0})
        if node.op == "placeholder":
            times = {"pixels": 0.0}
        _add_edge(flow, _PLANES, node, times.get("rows", math.inf))
        _add_edge(flow, node, _LAST, times.get("pixels", math.inf))
    for node in vertices:
        readers = [user for user in node.users if _is_activation(user)]
        if readers:
            _add_copies(flow, node, readers, copy_us(node))
    _, (planes, _) = networkx.minimum_cut(flow, _PLANES, _LAST)
    return {node: "pixels" if node in planes else "rows" for node in times_us}


def activations(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes whose results have an order: tensors that come or are made while the model runs."""
    return [node for node in graph.nodes if _is_activation(node)]


def _is_activation(node: fx.Node) -> bool:
    return node.op in ("placeholder", "call_function") and isinstance(node.meta.get("val"), torch.Tensor)


def _add_copies(flow: networkx.DiGraph, node: fx.Node, readers: list[fx.Node], cost: float) -> None:
    """Charge one copy if the node lies as planes and any reader wants channels-last, and one for the opposite."""
    for side in (_PLANES, _LAST):
        copy = (node, side)
        for end, capacity in ((node, cost), *((reader, math.inf) for reader in readers)):
            forward = (end is node) == (side == _PLANES)
            _add_edge(flow, end if forward else copy, copy if forward else end, capacity)


def _add_edge(flow: networkx.DiGraph, first: object, second: object, cost: float) -> None:
    """Add an edge; whole nanoseconds keep the flow exact, and one without a capacity cannot be cut."""
    if math.isinf(cost):
        flow.add_edge(first, second)
    else:
        flow.add_edge(first, second, capacity=round(1e3 * cost))
