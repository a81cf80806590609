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

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from torch import fx

Family = Literal["rows", "pixels"]
"""Channels-last or planes, by the family of kernels that computes in it."""

_PLANES, _LAST = 0, 1
"""Ends of the flow: the sides of planes and of channels-last."""

_LARGEST = 2**30
"""Sum of all finite capacities; scipy's flows are 32-bit integers."""


def choose_orders(
    graph: fx.Graph, times_us: Mapping[fx.Node, Mapping[Family, float]], copy_us: Callable[[fx.Node], float]
) -> dict[fx.Node, Family]:
    """Return the order of every layer that makes the sum of all layers and all copies least; channels-last in a tie.

    Args:
        graph: The graph.
        times_us: Time of every layer in each order, microseconds; a missing order is out of the question.
        copy_us: Time to copy a node's result into the other order.
    """
    flow = _Flow()
    vertices = {node: flow.add_vertex() for node in activations(graph)}
    for node, vertex in vertices.items():
        times: Mapping[Family, float] = times_us.get(node, {"rows": 0.0, "pixels": 0.0})
        if node.op == "placeholder":
            times = {"pixels": 0.0}
        flow.add_edge(_PLANES, vertex, times.get("rows", math.inf))
        flow.add_edge(vertex, _LAST, times.get("pixels", math.inf))
        readers = [vertices[user] for user in node.users if user in vertices]
        if readers:
            flow.add_copies(vertex, readers, copy_us(node))
    planes = flow.find_source_side()
    return {node: "pixels" if vertices[node] in planes else "rows" for node in times_us}


def activations(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes whose results have an order: tensors that come or are made while the model runs."""
    made = ("placeholder", "call_function")
    return [node for node in graph.nodes if node.op in made and isinstance(node.meta.get("val"), torch.Tensor)]


class _Flow:
    """A network with a vertex for each end, and edges that cost to cut."""

    def __init__(self) -> None:
        self._count = 2
        self._edges: list[tuple[int, int, float]] = []

    def add_vertex(self) -> int:
        self._count += 1
        return self._count - 1

    def add_edge(self, first: int, second: int, cost: float) -> None:
        """Charge `cost` if the first vertex ends on the side of planes and the second one does not."""
        self._edges.append((first, second, cost))

    def add_copies(self, vertex: int, readers: list[int], cost: float) -> None:
        """Charge one copy if a vertex is of planes and any reader is not, and one for the opposite."""
        there, back = self.add_vertex(), self.add_vertex()
        self.add_edge(vertex, there, cost)
        self.add_edge(back, vertex, cost)
        for reader in readers:
            self.add_edge(there, reader, math.inf)
            self.add_edge(reader, back, math.inf)

    def find_source_side(self) -> set[int]:
        """Return the vertices on the side of planes in the cheapest cut with the fewest of them."""
        first, second, costs = (np.array(column) for column in zip(*self._edges, strict=True))
        finite = np.isfinite(costs)
        scale = _LARGEST / max(1.0, costs[finite].sum())
        whole = np.where(finite, np.rint(np.where(finite, costs, 0.0) * scale), _LARGEST + len(costs)).astype(np.int32)
        capacity = csr_array(coo_array((whole, (first, second)), shape=(self._count, self._count)))
        rest = csr_array(capacity - maximum_flow(capacity, _PLANES, _LAST).flow)
        rest.eliminate_zeros()
        return set(breadth_first_order(rest, _PLANES, return_predecessors=False).tolist())
