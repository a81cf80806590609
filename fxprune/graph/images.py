"""The same graph for fewer images, where every image of the batch is computed on its own.

A node is per image if its first axis is the batch and image i of it depends on image i of the inputs alone. The rules
are a list of operators; any other operator, and any axis that cannot be the batch, ends the attempt.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from fxprune.graph.shapes import propagate_shapes
from fxprune.layer import find_layer
from fxprune.nodes import VIEWS, bind, copy_graph

_IMAGE_OPERATORS: Mapping[str, int] = {
    "max_pool1d": 3,
    "max_pool2d": 4,
    "max_pool3d": 5,
    "avg_pool1d": 3,
    "avg_pool2d": 4,
    "avg_pool3d": 5,
    "adaptive_avg_pool1d": 3,
    "adaptive_avg_pool2d": 4,
    "adaptive_avg_pool3d": 5,
    "adaptive_max_pool2d": 4,
    "upsample_nearest2d": 4,
    "upsample_bilinear2d": 4,
    "pixel_shuffle": 4,
    "pixel_unshuffle": 4,
    "batch_norm": 3,
    "_native_batch_norm_legit_no_training": 3,
    "group_norm": 3,
    "dropout": 2,
    "contiguous": 2,
    "clone": 2,
}
"""Operators whose first input is per image if it has at least so many axes; other tensors they read are constants."""

_FIRST_RESULT = frozenset({"_native_batch_norm_legit_no_training"})
"""Operators whose other results are not per image."""

_AXIS_OPERATORS = frozenset(
    {
        "mean",
        "sum",
        "amax",
        "softmax",
        "log_softmax",
        "cat",
        "chunk",
        "split",
        "split_with_sizes",
        "slice",
        "select",
        "index_select",
    }
)
"""Operators along axes, which must not be the batch; an index is a constant."""


def for_images(gm: fx.GraphModule, images: int) -> fx.GraphModule | None:
    """Return a copy of a graph for the first images of its batch, constants shared; None if it is not per image.

    Args:
        gm: A captured graph with static shapes.
        images: Images of the copy.
    """
    batch = batch_of(gm)
    if batch is None:
        return None
    graph, mapped = copy_graph(gm)
    small = fx.GraphModule(gm, graph)
    for node, copy in mapped.items():
        if node.target in VIEWS and _is_tensor(node, batch):
            shape = list(node.args[1])  # type: ignore[arg-type]
            if shape[0] == batch:
                copy.args = (copy.args[0], [images, *shape[1:]])
    starts = tuple(
        node.meta["val"][:images] if isinstance(node.meta["val"], torch.Tensor) else node.meta["val"]
        for node in gm.graph.nodes
        if node.op == "placeholder"
    )
    try:
        propagate_shapes(small, starts)
    except (RuntimeError, ValueError):
        return None
    return small if all(_shrank(node, copy, batch, images) for node, copy in mapped.items()) else None


def batch_of(gm: fx.GraphModule) -> int | None:
    """Return the number of images of a graph that computes each on its own, at least 2; None for any other graph."""
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    tensors = [node.meta["val"] for node in inputs if isinstance(node.meta.get("val"), torch.Tensor)]
    sizes = {int(tensor.shape[0]) if tensor.ndim > 1 else 0 for tensor in tensors}
    if len(sizes) != 1 or min(sizes) < 2:
        return None
    (batch,) = sizes
    per_image = {node for node in inputs if isinstance(node.meta.get("val"), torch.Tensor)}
    for node in gm.graph.nodes:
        if node.op == "output":
            given = tree_leaves(node.args)
            return batch if all(one in per_image and _is_tensor(one, batch) for one in given) else None
        if node.op == "call_function" and not per_image.isdisjoint(node.all_input_nodes):
            if not _keeps_images(node, per_image, batch):
                return None
            per_image.add(node)
    return None


def _keeps_images(node: fx.Node, per_image: set[fx.Node], batch: int) -> bool:
    """Whether a node that reads something per image is per image itself."""
    if node.target is operator.getitem:
        return _is_tensor(node, batch)
    results = _results(node)
    if not all(_is_tensor(result, batch) for result in (results[:1] if _name(node) in _FIRST_RESULT else results)):
        return False
    layer = find_layer(node)
    if layer is not None:
        axes = 2 if layer.kind == "linear" else layer.dims + 2
        read = {layer.input} | ({layer.residual} if layer.residual is not None else set())
        return (
            read <= per_image and layer.input.meta["val"].ndim >= axes and set(node.all_input_nodes) & per_image <= read
        )
    name = _name(node)
    if _is_pointwise(node):
        axes = node.meta["val"].ndim
        return all(_broadcasts(source, source in per_image, axes) for source in node.all_input_nodes)
    if name in _IMAGE_OPERATORS:
        first = node.args[0]
        if not isinstance(first, fx.Node) or set(node.all_input_nodes) & per_image != {first} or _trains(node):
            return False
        return bool(first.meta["val"].ndim >= _IMAGE_OPERATORS[name])
    if name in _AXIS_OPERATORS:
        index = bind(node).get("index") if name == "index_select" else None
        return {source for source in node.all_input_nodes if source is not index} <= per_image and (
            index not in per_image and _spares_first_axis(node)
        )
    if node.target in VIEWS:  # row-major order: the first axis of the input and of the result are the batch
        return isinstance(node.args[1], Sequence)
    start = bind(node).get("start_dim")
    return name == "flatten" and isinstance(start, int) and start > 0


def _is_pointwise(node: fx.Node) -> bool:
    tags = node.target.tags if isinstance(node.target, torch._ops.OpOverload) else ()
    return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags


def _trains(node: fx.Node) -> bool:
    """Whether a batch norm or a dropout is in training mode, where images depend on each other or on chance."""
    given = bind(node)
    return bool(given.get("training") or given.get("train"))


def _spares_first_axis(node: fx.Node) -> bool:
    """Whether an operator along axes, all of them named, leaves the first one alone."""
    first = node.all_input_nodes[0].meta["val"]
    given = bind(node).get("dim")
    axes: Sequence[object] = given if isinstance(given, Sequence) else [given]
    return bool(axes) and all(isinstance(axis, int) and axis % first.ndim != 0 for axis in axes)


def _broadcasts(source: fx.Node, is_per_image: bool, axes: int) -> bool:
    """Whether an input of a pointwise operator meets every image alike, or image by image."""
    value = source.meta["val"]
    if is_per_image:
        return bool(value.ndim == axes)
    return not isinstance(value, torch.Tensor) or value.ndim < axes or value.shape[0] == 1


def _name(node: fx.Node) -> str:
    return node.target._schema.name.split("::")[-1] if isinstance(node.target, torch._ops.OpOverload) else ""


def _results(node: fx.Node) -> list[object]:
    value = node.meta.get("val")
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _is_tensor(value: object, batch: int) -> bool:
    """Whether a value, or that of a node, is a tensor with the batch as its first axis."""
    tensor = value.meta.get("val") if isinstance(value, fx.Node) else value
    return isinstance(tensor, torch.Tensor) and tensor.ndim > 0 and tensor.shape[0] == batch


def _shrank(node: fx.Node, copy: fx.Node, batch: int, images: int) -> bool:
    """Whether every value of the copy has the shape of the original but for the batch."""
    if node.op == "get_attr":
        return True
    for old, new in zip(_results(node), _results(copy), strict=True):
        if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor) and old.ndim:
            first = images if old.shape[0] == batch else old.shape[0]
            if tuple(new.shape) != (first, *old.shape[1:]):
                return False
    return True
