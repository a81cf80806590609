"""Where every number of a small model stands in the tensors of the network."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fxprune.channels.record import STATISTICS, LayerCut
from fxprune.checkpoint.replay import Origin, Replay
from fxprune.layer import Layer


@dataclass(frozen=True, eq=False)
class Place:
    """Where a tensor of the small model comes from.

    Attributes:
        layer: Name of the layer's node.
        small: Name of the tensor in the small model.
        original: Name of the tensor in the network; None: the network has none.
        cells: For every number its position in the flattened original, in the shape of the small tensor.
        scale: What the original numbers were multiplied by, float64, broadcast over the cells; None for 1.
    """

    layer: str
    small: str
    original: str | None
    cells: torch.Tensor
    scale: torch.Tensor | None


def find_places(found: Replay) -> dict[str, Place]:
    """Return the places of the weights and biases of layers, by the name of the small tensor.

    Layers behind a split normalisation have none: their columns are several of the network's.
    """
    places: dict[str, Place] = {}
    for layer in found.layers():
        cut, origin = found.cut_of(layer), found.origin_of(layer)
        if STATISTICS in cut.folded:
            continue
        weight = _place_weight(layer, cut, origin)
        places.setdefault(weight.small, weight)
        if layer.bias is not None:
            bias = _place_bias(layer, cut, origin)
            places.setdefault(bias.small, bias)
    return places


def _place_weight(layer: Layer, cut: LayerCut, origin: Origin) -> Place:
    """Place a weight: the rows and channels of a record stand conv group by conv group."""
    rows = torch.tensor(cut.rows).view(layer.groups, -1, 1)
    channels = torch.tensor(cut.channels).view(layer.groups, 1, -1)
    first, second = (channels, rows) if layer.kind == "conv_transpose" else (rows, channels)
    width, *kernel = origin.weight_shape[1:]
    taps = torch.Size(kernel).numel()
    cells = (first * width + second % width)[..., None] * taps + torch.arange(taps)
    scale = None if origin.scale is None else origin.scale[rows][..., None].expand(cells.shape)
    if layer.kind == "conv_transpose":
        cells, scale = cells.transpose(1, 2), None if scale is None else scale.transpose(1, 2)
    shape = layer.weight_shape
    return Place(
        layer=layer.node.name,
        small=str(layer.weight.target),
        original=origin.weight,
        cells=cells.reshape(shape),
        scale=None if scale is None else scale.reshape(shape),
    )


def _place_bias(layer: Layer, cut: LayerCut, origin: Origin) -> Place:
    """Place a bias: in that of the batch normalisation that was folded in, else in the layer's own."""
    assert layer.bias is not None
    rows = torch.tensor(cut.rows)
    scale = None if origin.shift is not None or origin.scale is None else origin.scale[rows]
    return Place(layer.node.name, str(layer.bias.target), origin.shift or origin.bias, rows, scale)
