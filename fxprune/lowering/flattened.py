"""Linear layers that read the images of a planned buffer as rows, [N, C * H * W], wherever their cells lie."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import fx

from fxprune.annotation import IndexArray
from fxprune.codegen.workload import Layout
from fxprune.layer import Layer
from fxprune.nodes import VIEWS

_SAME_CELLS = VIEWS | {torch.ops.aten.flatten.using_ints}


def image_of_rows(layer: Layer, kinds: Mapping[fx.Node, tuple[str, int]]) -> fx.Node | None:
    """Return the node of the images, [N, C, ...], whose cells are the rows, [N, C * ...], that a linear layer reads.

    Args:
        layer: Any layer.
        kinds: Kind and spatial axes of what writes each planned buffer.
    """
    rows = layer.input.meta["val"]
    if layer.kind != "linear" or rows.ndim != 2:
        return None
    node = layer.input
    if node not in kinds and node.op == "call_function" and node.target in _SAME_CELLS:
        node = node.args[0] if isinstance(node.args[0], fx.Node) else node
    kind, dims = kinds.get(node, ("", 0))
    if kind != "conv":
        return None
    image = node.meta["val"]
    return node if image.ndim in (2, dims + 2) and image.flatten(1).shape == rows.shape else None


def rows_layout(images: Layout) -> Layout:
    """Return the layout of a buffer of images as that of one row of cells for each of them."""
    return Layout("nhwc", 1, images.strides[0], (1, 1, images.batch))


def cell_positions(images: Layout, cells: int) -> IndexArray:
    """Return where every cell of an image lies, [C * D * H * W], counted from the image's first one in the buffer.

    Args:
        images: How the images lie.
        cells: Cells of an image, without halo and channels of padding.
    """
    depth, height, width = images.spatial
    _, *steps = images.strides
    index = np.indices((cells // (depth * height * width), depth, height, width), dtype=np.int64)
    offsets = sum(axis * step for axis, step in zip(index, steps, strict=True))
    return np.asarray(offsets + images.origin, dtype=np.int32).reshape(-1)
