"""Layer normalisation next to linear layers that kernels run: found in the graph, laid out as its readers want it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import fx

from fxprune.codegen.cpu.layer_norm import fit_lanes
from fxprune.codegen.workload import Layout, spread_cells
from fxprune.layer import Layer
from fxprune.lowering.choice import Choice
from fxprune.nodes import bind

_LEAST_LANES = 4
"""Channels that make up no vectors of so many lanes are left to torch."""


@dataclass(frozen=True)
class Normalisation:
    """A layer normalisation over the last axis.

    Attributes:
        node: The node.
        input: Node of the input, [..., C].
        weight: Node of gamma, [C], or None for ones.
        bias: Node of beta, [C], or None for zeros.
        eps: Added to the variance.
    """

    node: fx.Node
    input: fx.Node
    weight: fx.Node | None
    bias: fx.Node | None
    eps: float

    @property
    def channels(self) -> int:
        """C."""
        return int(self.node.meta["val"].shape[-1])

    @property
    def tokens(self) -> int:
        """Size of all other axes together."""
        return prod(self.node.meta["val"].shape[:-1])

    def layout(self, *, spread: bool = False) -> Layout:
        """Return how its tokens lie, as a linear layer has them.

        Args:
            spread: Whether kernels gather columns there.
        """
        return Layout("nhwc", 1, spread_cells(self.channels) if spread else self.channels, (1, 1, self.tokens))


def find_norms(
    graph: fx.Graph, layers: Mapping[fx.Node, Layer], choices: Mapping[fx.Node, Choice], lanes: int
) -> dict[fx.Node, Normalisation]:
    """Return the layer normalisations that read or feed linear layers of kernels.

    Args:
        graph: The graph.
        layers: The layers that kernels could run.
        choices: What runs them.
        lanes: float32 lanes of a vector.
    """
    near = {node for node, layer in layers.items() if layer.kind == "linear" and choices[node].family == "rows"}
    found: dict[fx.Node, Normalisation] = {}
    for node in graph.nodes:
        norm = _read(node)
        if norm is None or fit_lanes(norm.channels, lanes) < _LEAST_LANES:
            continue
        if norm.input in near or any(user in near and layers[user].input is node for user in node.users):
            found[node] = norm
    return found


def _read(node: fx.Node) -> Normalisation | None:
    """Return a layer normalisation of float32 tokens as a kernel can run it."""
    if node.op != "call_function" or node.target is not torch.ops.aten.layer_norm.default:
        return None
    given = bind(node)
    source, sizes, weight, bias = (given[name] for name in ("input", "normalized_shape", "weight", "bias"))
    if not isinstance(source, fx.Node) or not isinstance(sizes, list | tuple) or len(sizes) != 1:
        return None
    fake = source.meta["val"]
    if fake.dtype != torch.float32 or fake.ndim < 2 or not fake.numel():
        return None
    if not all(one is None or (isinstance(one, fx.Node) and one.op == "get_attr") for one in (weight, bias)):
        return None
    return Normalisation(node, source, weight, bias, float(given["eps"]))  # type: ignore[arg-type]
