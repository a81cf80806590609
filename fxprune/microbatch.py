"""A batch in micro-batches: the activations of many images do not fit the caches.

How many images one of them takes is predicted from the bytes that come from memory: the activations of layers that
outgrow the caches, once a call, against all weights, once a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fxprune.graph.images import batch_of, for_images
from fxprune.layer import find_layer
from fxprune.nodes import annotation_of

_CACHE_BYTES = 8e6
"""What the caches hold of one layer's input, output and residual: the second level and a share of the third."""

_LAUNCH_BYTES = 60e3
"""One more run of a layer takes as long as so many bytes from memory: 3 us at 20 GB/s."""


@dataclass(frozen=True, eq=False)
class MicroBatches:
    """How a batch is computed.

    Attributes:
        graph_module: The graph of one micro-batch.
        images: Images of a micro-batch; None = all at once.
        count: Number of micro-batches.
    """

    graph_module: fx.GraphModule
    images: int | None = None
    count: int = 1


def split_batch(gm: fx.GraphModule, images: int | None = None) -> MicroBatches:
    """Cut the batch of a graph into parts, if every image is computed on its own and that is predicted to be faster.

    Args:
        gm: The graph after all passes; it is not changed.
        images: Images of a micro-batch; None = as predicted.
    """
    batch = batch_of(gm)
    if batch is None:
        return MicroBatches(gm)
    chosen = images or _predict(gm, batch)
    small = for_images(gm, chosen) if chosen < batch else None
    return MicroBatches(gm) if small is None else MicroBatches(small, chosen, batch // chosen)


def _predict(gm: fx.GraphModule, batch: int) -> int:
    """Return the images of a micro-batch, a divisor of the batch, that bring the fewest bytes from memory."""
    weights, activations = 0.0, []
    for node in gm.graph.nodes:
        layer, annotation = find_layer(node), annotation_of(node)
        if layer is not None and annotation is not None:
            weights += 4 * annotation.nnz + _LAUNCH_BYTES
        if node.op == "call_function":
            read = [source for source in node.all_input_nodes if source.op != "get_attr"]
            activations.append(sum(_bytes(one) for one in (node, *read)) / batch)

    def cost(images: int) -> float:
        outgrown = sum(size for size in activations if size * images > _CACHE_BYTES)
        return batch // images * weights + batch * outgrown

    divisors = [images for images in range(1, batch + 1) if batch % images == 0]
    return min(divisors, key=lambda images: (cost(images), -images))


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0
