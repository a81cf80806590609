"""The kernels' view of a layer and of its tensors: three spatial axes, missing ones of size 1."""

from __future__ import annotations

from collections.abc import Collection
from math import prod

import torch

from fxprune.codegen.workload import ConvShape, Halo, Layout, Triple
from fxprune.layer import Layer


def is_depthwise(layer: Layer) -> bool:
    """Whether a layer convolves every channel by itself, one output for one input."""
    return layer.kind == "conv" and layer.groups == layer.out_channels > 1 and layer.weight_shape[1] == 1


FLOAT32 = frozenset({torch.float32})
"""The types of the layers that kernels for CPUs compute."""


def find_obstacle(layer: Layer, *, depthwise: bool, types: Collection[torch.dtype] = FLOAT32) -> str | None:
    """Return why no kernel can compute a layer, or None.

    Args:
        layer: Any layer of the graph.
        depthwise: Whether the target has a kernel for depthwise layers.
        types: What the target has kernels for.
    """
    fake = layer.input.meta["val"]
    if layer.kind == "conv_transpose":
        return "a transposed convolution stays dense: there is no row-group kernel for it"
    if fake.dtype not in types or layer.weight.meta["val"].dtype != fake.dtype:
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in types))
        return f"the kernels compute in {names}, this layer in {fake.dtype}"
    if layer.groups > 1 and layer.groups == layer.out_channels and not (depthwise and is_depthwise(layer)):
        return f"depthwise, {layer.groups} conv groups of one row: no two rows share an input channel"
    if prod(layer.output_shape) == 0:
        return "the output is empty"
    return None


def shape_of(layer: Layer) -> ConvShape:
    """Return the geometry of a layer that has no obstacle."""
    out, columns = layer.weight_shape[:2]
    size = tuple(layer.input.meta["val"].shape)
    if layer.kind == "linear":
        tokens = prod(size[:-1])
        one: Triple = (1, 1, 1)
        zero: Halo = ((0, 0), (0, 0), (0, 0))
        return ConvShape(1, columns, out, (1, 1, tokens), one, one, zero, one, 1)
    batch = size[0] if len(size) == layer.dims + 2 else 1
    return ConvShape(
        batch=batch,
        channels_in=columns * layer.groups,
        channels_out=out,
        spatial_in=_triple(size[-layer.dims :], 1),
        kernel=_triple(layer.weight_shape[2:], 1),
        stride=_triple(layer.stride, 1),
        padding=_pairs(layer.padding),
        dilation=_triple(layer.dilation, 1),
        groups=layer.groups,
    )


def _triple(values: tuple[int, ...], missing: int) -> Triple:
    depth, height, width = (missing,) * (3 - len(values)) + values
    return depth, height, width


def _pairs(values: tuple[tuple[int, int], ...]) -> Halo:
    depth, height, width = ((0, 0),) * (3 - len(values)) + values
    return depth, height, width


def view_5d(tensor: torch.Tensor, kind: str, dims: int) -> torch.Tensor:
    """View a layer's input or output as [N, C, D, H, W].

    Args:
        tensor: [N, C, *image] or [C, *image] of a convolution, [..., C] of a linear layer.
        kind: "conv" or "linear".
        dims: Spatial axes; 0 for linear.
    """
    if kind == "linear":
        tokens = tensor.reshape(-1, tensor.shape[-1])
        return tokens.t().reshape(1, tensor.shape[-1], 1, 1, tokens.shape[0])
    image = tensor.shape[-dims:]
    return tensor.reshape(-1, tensor.shape[-dims - 1], *(1,) * (3 - dims), *image)


def buffer_view(buffer: torch.Tensor, layout: Layout, dims: int, shape: tuple[int, ...]) -> torch.Tensor:
    """View a flat buffer as the tensor that torch expects there.

    Args:
        buffer: Flat, at least `layout.numel` cells.
        layout: Where the tensor lies in it.
        dims: Spatial axes of the layer; 0 for linear.
        shape: [N, C, *image], [C, *image] or [..., C]; C may be smaller than the layout's channels.

    Returns:
        The tensor; of an activation in bands, which torch never reads, one image for each band.
    """
    offset = buffer.storage_offset() + layout.origin
    n, c, *image = layout.strides
    if dims == 0:
        return buffer.as_strided((prod(shape[:-1]), shape[-1]), (image[-1], c), offset).view(shape)
    if layout.batch > prod(shape[: -dims - 1]):
        return buffer.as_strided(
            (layout.batch, shape[-dims - 1], *layout.spatial[-dims:]), (n, c, *image[-dims:]), offset
        )
    lead = (n, c) if len(shape) == dims + 2 else (c,)
    return buffer.as_strided(shape, (*lead, *image[-dims:]), offset)
