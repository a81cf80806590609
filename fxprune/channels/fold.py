"""What a layer makes of input channels that do not depend on the input."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx

from fxprune.channels.facts import Facts, Kind
from fxprune.channels.grid import IntArray
from fxprune.channels.spatial import FloatArray, SpatialMap, Window, constant_map, convolve
from fxprune.layer import Layer
from fxprune.nodes import get_tensor


def constant_rows(
    gm: fx.GraphModule, layer: Layer, facts: Facts, inputs: IntArray, ids: IntArray, rows: IntArray
) -> None:
    """Write the values of rows that read no varying channel.

    Args:
        gm: Holds the weights.
        layer: The layer.
        facts: Receives kinds, values and maps.
        inputs: Ids of the input channels, [I].
        ids: Ids of the output channels, [O].
        rows: The rows in question.
    """
    if rows.size == 0:
        return
    bias = row_bias(gm, layer)[rows]
    known = ~facts.varies(inputs) & ~facts.is_zero(inputs)
    if not bool(known.any()):
        facts.set_constants(ids[rows], bias)
        return
    if is_depthwise(layer) and layer.kind == "conv":
        plain = facts.kind[inputs[rows // multiplier(layer)]] == Kind.CONST
        chosen = rows[plain]
        weight = cells_of(get_tensor(gm, layer.weight), layer, chosen, np.zeros(1, dtype=np.int64))
        values = facts.value[inputs[chosen // multiplier(layer)]].reshape(-1, *[1] * (weight.ndim - 1))
        plane = convolve(weight * values, [constant_map(1.0, spatial(layer, layer.input))], window_of(layer))
        facts.set_maps(ids[chosen], add_bias(plane, bias[plain]))
        rows, bias = rows[~plain], bias[~plain]
    for group, members in split_groups(layer, rows):
        own = group_columns(layer, group)
        channels = own[known[own]]
        added = fold_channels(gm, layer, facts, inputs, rows[members], channels)
        facts.set_maps(ids[rows[members]], add_bias(added, bias[members]))


def add_bias(planes: SpatialMap, bias: FloatArray) -> SpatialMap:
    """Add one number to each map."""
    return SpatialMap(planes.classes, planes.table + bias.reshape(-1, *[1] * len(planes.classes)))


def is_depthwise(layer: Layer) -> bool:
    """Return whether every conv group has one input channel and there are several groups."""
    return layer.groups > 1 and group_width(layer) == 1


def multiplier(layer: Layer) -> int:
    """Return the number of output channels of a conv group."""
    return layer.out_channels // layer.groups


def row_bias(gm: fx.GraphModule, layer: Layer) -> FloatArray:
    """Return the bias in float64, zeros if there is none, [O]."""
    if layer.bias is None:
        return np.zeros(layer.out_channels)
    return np.asarray(get_tensor(gm, layer.bias).detach().double().cpu().numpy())


def split_groups(layer: Layer, rows: IntArray) -> list[tuple[int, IntArray]]:
    """Return conv groups and the positions in `rows` that belong to each."""
    if rows.size == 0:
        return []
    owner = rows // multiplier(layer)
    groups, starts = np.unique(owner[order := np.argsort(owner, kind="stable")], return_index=True)
    return [(int(group), part) for group, part in zip(groups, np.split(order, starts[1:]), strict=True)]


def group_columns(layer: Layer, group: int) -> IntArray:
    """Return the input channels of a conv group."""
    width = group_width(layer)
    return np.arange(group * width, (group + 1) * width, dtype=np.int64)


def group_width(layer: Layer) -> int:
    """Return the number of input channels of a conv group."""
    shape = layer.weight_shape
    return shape[0] // layer.groups if layer.kind == "conv_transpose" else shape[1]


def cells_of(weight: torch.Tensor, layer: Layer, rows: IntArray, channels: IntArray) -> FloatArray:
    """Return the weights of rows and input channels of one conv group, [rows, channels, *kernel], float64."""
    row_index, channel_index = torch.from_numpy(rows), torch.from_numpy(channels)
    if layer.kind == "conv_transpose":
        local = row_index % (layer.out_channels // layer.groups)
        cut = weight.detach().index_select(0, channel_index).index_select(1, local).transpose(0, 1)
    else:
        cut = weight.detach().index_select(0, row_index).index_select(1, channel_index % group_width(layer))
    return np.asarray(cut.double().cpu().numpy())


def fold_channels(
    gm: fx.GraphModule, layer: Layer, facts: Facts, inputs: IntArray, rows: IntArray, channels: IntArray
) -> SpatialMap:
    """Return what known channels of one conv group add to rows.

    Args:
        gm: Holds the weights.
        layer: The layer.
        facts: The values.
        inputs: Ids of all input channels, [I].
        rows: Output channels of one conv group.
        channels: Input channels of the same group; none of them varies.

    Returns:
        A map with table [rows, ...], without the bias.
    """
    flat = tuple(np.zeros(size, dtype=np.int64) for size in spatial(layer, layer.node))
    if channels.size == 0 or rows.size == 0:
        return SpatialMap(flat, np.zeros((rows.size, *[1] * layer.dims)))
    weight = cells_of(get_tensor(gm, layer.weight), layer, rows, channels)
    sizes = spatial(layer, layer.input)
    if layer.kind == "conv_transpose":
        planes = np.stack([facts.map_of(identity, sizes).full() for identity in inputs[channels].tolist()])
        return _fold_transposed(layer, weight, planes)
    if layer.kind == "linear":
        return SpatialMap((), weight @ facts.value[inputs[channels]])
    ids = inputs[channels]
    if not bool((facts.kind[ids] == Kind.MAP).any()):
        return _fold_constants(layer, weight, facts.value[ids], sizes)
    return convolve(weight, [facts.map_of(identity, sizes) for identity in ids.tolist()], window_of(layer))


def _fold_transposed(layer: Layer, weight: FloatArray, planes: FloatArray) -> SpatialMap:
    """Fold planes [channels, *sizes] by running the transposed convolution on them: every position is its own class."""
    run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[layer.dims - 1]
    kernel = torch.from_numpy(np.ascontiguousarray(weight.swapaxes(0, 1)))
    padding = tuple(low for low, _ in layer.padding)
    x = torch.from_numpy(planes)[None]
    y = run(x, kernel, None, layer.stride, padding, layer.output_padding, 1, layer.dilation)[0].numpy()
    return SpatialMap(tuple(np.arange(size, dtype=np.int64) for size in y.shape[1:]), np.asarray(y))


def _fold_constants(layer: Layer, weight: FloatArray, values: FloatArray, sizes: tuple[int, ...]) -> SpatialMap:
    """Fold plain constants: sum over the channels first, then walk over one plane of ones."""
    summed = np.tensordot(weight, values, axes=([1], [0]))[:, None]
    return convolve(summed, [constant_map(1.0, sizes)], window_of(layer))


def spatial(layer: Layer, node: fx.Node) -> tuple[int, ...]:
    """Return the spatial sizes of a layer's input or output; none for linear."""
    shape = tuple(node.meta["val"].shape)
    return shape[len(shape) - layer.dims :]


def window_of(layer: Layer) -> Window:
    """Return the geometry of a convolution."""
    return Window(
        kernel=layer.weight_shape[2:],
        stride=layer.stride,
        padding=tuple(low for low, _ in layer.padding),
        dilation=layer.dilation,
        output=spatial(layer, layer.node),
    )
