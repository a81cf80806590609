"""Which layers write into one residual stream: rows of theirs that are not kept together leave the union behind."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from fxprune.graph import capture
from fxprune.layer import Layer, find_layer
from fxprune.transform.layers import Model

_aten = torch.ops.aten

_JOINING = frozenset({_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.maximum.default})
"""Two tensors of one shape, channel by channel."""

_PASSING = frozenset(
    {
        "_native_batch_norm_legit_functional",
        "_native_batch_norm_legit_no_training",
        "batch_norm",
        "native_batch_norm",
        "relu",
        "relu6",
        "hardtanh",
        "clamp",
        "leaky_relu",
        "gelu",
        "silu",
        "hardswish",
        "hardsigmoid",
        "sigmoid",
        "tanh",
        "elu",
        "clone",
        "dropout",
        "max_pool2d",
        "max_pool2d_with_indices",
        "avg_pool2d",
        "adaptive_avg_pool2d",
        "getitem",
    }
)
"""Operators, by name without overload, whose channels are those of their first input."""


def find_coupled(model: Model, example_inputs: torch.Tensor | tuple[object, ...]) -> list[list[str]]:
    """Find the sets of layers whose output channels are added to each other, e.g. all ends of one residual stream.

    A depthwise convolution belongs to the layer before it. An operator that is not known ends a stream.

    Args:
        model: The model in eval mode; only read.
        example_inputs: A tensor or a tuple of positional inputs.

    Returns:
        Names of weights, two or more a set, in the order in which the layers run.

    Raises:
        UnsupportedError: The model cannot be captured.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    streams: dict[fx.Node, int] = {}
    members: dict[int, list[str]] = {}
    order: dict[str, None] = {}
    for node in capture(model, inputs, {}).graph_module.graph.nodes:
        layer = find_layer(node)
        if layer is not None:
            order[str(layer.weight.target)] = None
            _add_layer(layer, streams, members)
            continue
        sources = [item for item in node.all_input_nodes if item in streams]
        if node.target in _JOINING and len(sources) == 2 and _same_shape(node, sources):
            streams[node] = _join(streams[sources[0]], streams[sources[1]], streams, members)
        elif sources and _passes(node) and node.args[0] is sources[0]:
            streams[node] = streams[sources[0]]
    return [[name for name in order if name in names] for names in members.values() if len(set(names)) > 1]


def _add_layer(layer: Layer, streams: dict[fx.Node, int], members: dict[int, list[str]]) -> None:
    name = str(layer.weight.target)
    if layer.groups > 1 and layer.groups == layer.out_channels and layer.input in streams:
        streams[layer.node] = streams[layer.input]
    else:
        known = next((number for number, names in members.items() if name in names), None)
        streams[layer.node] = len(streams) if known is None else known
    members.setdefault(streams[layer.node], []).append(name)


def _join(first: int, second: int, streams: dict[fx.Node, int], members: dict[int, list[str]]) -> int:
    """Make two streams one; returns its number."""
    if first != second:
        members[first] += members.pop(second)
        for node, number in streams.items():
            if number == second:
                streams[node] = first
    return first


def _same_shape(node: fx.Node, sources: list[fx.Node]) -> bool:
    shapes: list[Mapping[str, object]] = [item.meta for item in (node, *sources)]
    sizes = {tuple(value.shape) for meta in shapes if isinstance(value := meta["val"], torch.Tensor)}
    return len(sizes) == 1


def _passes(node: fx.Node) -> bool:
    name = node.target.__name__ if callable(node.target) else str(node.target)
    return name.partition(".")[0] in _PASSING
