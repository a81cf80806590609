"""A captured graph made ready to run: views that copy where they must, and one module call a layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import fx, nn

from fxprune.annotation import META_KEY
from fxprune.layer import Layer, find_layer
from fxprune.nodes import annotation_of, copy_graph, loosen_views

_REPLACEMENT = "replacement"
"""Key of the node that stands for one that was replaced."""


def place_layers(
    result: fx.GraphModule,
    gm: fx.GraphModule,
    mapped: Mapping[fx.Node, fx.Node],
    kernels: Collection[fx.Node],
    make_dense: Callable[[Layer], nn.Module],
    unaries: Collection[fx.Node] = (),
) -> dict[fx.Node, fx.Node]:
    """Put a module call in the place of every layer: an empty one for kernels, the dense layer for the others.

    Args:
        result: The copy, changed in place.
        gm: The captured graph.
        mapped: The copy of every node.
        kernels: Layers that kernels run.
        make_dense: Makes the module of a dense layer.
        unaries: Pools and layer normalisations that kernels run.

    Returns:
        The module call of every node that a kernel runs.
    """
    placed: dict[fx.Node, fx.Node] = {}
    for number, node in enumerate(gm.graph.nodes):
        if node in unaries:
            result.add_submodule(f"unary_{number}", nn.Module())
            placed[node] = _replace(result, mapped[node], [mapped[node.args[0]]], f"unary_{number}")
        elif node.target is torch.ops.aten.adaptive_avg_pool2d.default and list(node.args[1]) == [1, 1]:
            _use_mean(result, mapped[node])
        layer = find_layer(node)
        if layer is None or layer.kind == "conv_transpose" or annotation_of(node) is None:
            continue
        name = f"kernel_{number}" if node in kernels else f"dense_{number}"
        result.add_submodule(name, nn.Module() if node in kernels else make_dense(layer))
        read = [layer.input] if layer.residual is None else [layer.input, layer.residual]
        new = _replace(result, mapped[node], [mapped[argument] for argument in read], name)
        if node in kernels:
            placed[node] = new
    loosen_views(result.graph)
    return placed


def _use_mean(result: fx.GraphModule, pool: fx.Node) -> None:
    """Take the mean of the image in the place of a pool to one pixel: ten times faster channels-last on torch 2.15."""
    with result.graph.inserting_before(pool):
        mean = result.graph.call_function(torch.ops.aten.mean.dim, (_current(pool.args[0]), [-1, -2], True))  # type: ignore[arg-type]
    mean.meta = dict(pool.meta)
    pool.replace_all_uses_with(mean)
    pool.meta[_REPLACEMENT] = mean
    result.graph.erase_node(pool)


def _replace(result: fx.GraphModule, old: fx.Node, arguments: Sequence[fx.Node], name: str) -> fx.Node:
    """Put a module call in the place of a node."""
    current = [_current(argument) for argument in arguments]
    with result.graph.inserting_before(old):
        new = result.graph.call_module(name, tuple(current))
    new.meta = dict(old.meta)
    old.replace_all_uses_with(new)
    old.meta[_REPLACEMENT] = new
    result.graph.erase_node(old)
    return new


def _current(node: fx.Node) -> fx.Node:
    """Return the node that stands for a copied node now."""
    replacement = node.meta.get(_REPLACEMENT)
    return replacement if isinstance(replacement, fx.Node) and replacement is not node else node


def drop_constants(result: fx.GraphModule) -> None:
    """Remove what no node reads any more."""
    for node in reversed(list(result.graph.nodes)):
        if node.op == "get_attr" and not node.users:
            result.graph.erase_node(node)
    result.delete_all_unused_submodules()
    read = {str(node.target) for node in result.graph.nodes if node.op == "get_attr"}
    for name, _ in [*result.named_buffers(), *result.named_parameters()]:
        if name in read or name.split(".")[0].startswith(("stage_", "kernel_", "dense_")):
            continue
        *path, leaf = name.split(".")
        delattr(result.get_submodule(".".join(path)), leaf)


def forget_replaced(result: fx.GraphModule) -> None:
    """Make the graph anew: one remembers all nodes that it ever named, and those of layers know masks and patterns."""
    graph, _ = copy_graph(result)
    for node in graph.nodes:
        node.meta = {key: value for key, value in node.meta.items() if key not in (META_KEY, _REPLACEMENT)}
    result.graph = graph
