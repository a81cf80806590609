"""Emit a layer for a cut input: rows and columns taken out, constants of lost channels folded in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import fx
from torch.fx.node import Argument

from fxprune.annotation import META_KEY, WeightAnnotation
from fxprune.channels.adapt import select
from fxprune.channels.facts import Kind
from fxprune.channels.fold import (
    cells_of,
    fold_channels,
    group_columns,
    group_width,
    is_depthwise,
    multiplier,
    row_bias,
    spatial,
    split_groups,
)
from fxprune.channels.grid import IntArray
from fxprune.channels.record import LayerCut
from fxprune.channels.rewriter import Rewriter
from fxprune.channels.spatial import FloatArray, SpatialMap, stack_maps
from fxprune.layer import Layer, name_bias
from fxprune.nodes import annotation_of, bind, get_tensor

_aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class _GroupCut:
    """What stays of one conv group.

    Attributes:
        rows: Output channels, original numbering.
        channels: Input channels, original numbering.
        carrier: The channel that stands for others with its constant, or None.
        carrier_weight: Its new weights, [rows, *kernel], float64.
        extra: What the lost channels add to the rows.
        groups: How many conv groups it is: several for a depthwise convolution that loses no channel it needs.
    """

    rows: IntArray
    channels: IntArray
    carrier: int | None
    carrier_weight: FloatArray | None
    extra: SpatialMap
    groups: int = 1


def rewrite_layer(layer: Layer, rewriter: Rewriter) -> None:
    """Emit the layer for the channels that are left of its input, and the rows that stay.

    Args:
        layer: A layer of the old graph.
        rewriter: The new graph.
    """
    node = layer.node
    if node not in rewriter.facts.reads:
        _rewrite_along_other_axis(layer, rewriter)
        return
    kept = rewriter.kept_cells(node)
    if kept is None:
        rewriter.drop(node)
        return
    rows = kept.reshape(-1)
    axis = _axis(layer)
    wanted = _choose_input(layer, rewriter, rows)
    cuts = _cut_groups(layer, rewriter, rows, wanted)
    source = rewriter.facts.of(layer.input)
    shape = [1] * len(source.shape)
    shape[axis] = -1
    if source.ids.size > 1:
        x = rewriter.fetch(layer.input, wanted.reshape(shape))
    else:  # nothing is known of single channels: all are there
        whole_input = rewriter.fetch_full(layer.input)
        x = select(rewriter, layer.input, whole_input, axis, wanted, layer.input.meta["val"].shape[axis])
    new = _emit_layer(layer, rewriter, x, cuts)
    rewriter.put(node, new, kept)


def _rewrite_along_other_axis(layer: Layer, rewriter: Rewriter) -> None:
    """Emit a linear layer whose input is cut along an axis that it does not contract."""
    held = rewriter.held(layer.input)
    if rewriter.facts.of(layer.node).ids.size == 1 or rewriter.is_whole(layer.input):
        rewriter.copy_full(layer.node)
        return
    if held is None:
        rewriter.drop(layer.node)
        return
    arguments = dict(bind(layer.node))
    arguments = {name: rewriter.argument(value) for name, value in arguments.items() if name != "input"}
    new = rewriter.emit_like(layer.node, {**arguments, "input": rewriter.made_node(layer.input)})
    rewriter.put(layer.node, new, held)


def _choose_input(layer: Layer, rewriter: Rewriter, rows: IntArray) -> IntArray:
    """Return the input channels that the cut layer reads, in order."""
    source = rewriter.facts.of(layer.input)
    width = group_width(layer)
    groups = np.unique(rows // multiplier(layer))
    own = (groups[:, None] * width + np.arange(width)).reshape(-1)
    if source.ids.size == 1:
        return own
    held = rewriter.held(layer.input)
    if held is None:
        return own
    present = held.reshape(-1)
    ids = source.ids.reshape(-1)[present]
    present = present[rewriter.facts.used[ids] | ~np.isin(ids, rewriter.facts.given)]
    if layer.groups == 1:
        return present if present.size else own
    members = np.sort(present[np.isin(present // width, groups)])
    counts = np.bincount(members // width, minlength=layer.groups)[groups]
    return members if counts.min() == counts.max() > 0 else own


def _cut_groups(layer: Layer, rewriter: Rewriter, rows: IntArray, wanted: IntArray) -> list[_GroupCut]:
    """Cut every conv group; the groups of a depthwise convolution together."""
    groups = split_groups(layer, rows)
    if is_depthwise(layer) and layer.kind == "conv":
        flat = tuple(np.zeros(size, dtype=np.int64) for size in spatial(layer, layer.node))
        nothing = SpatialMap(flat, np.zeros((rows.size, *[1] * layer.dims)))
        return [_GroupCut(rows, wanted, None, None, nothing, groups=len(groups))]
    return [_cut_group(layer, rewriter, group, rows[members], wanted) for group, members in groups]


def _cut_group(layer: Layer, rewriter: Rewriter, group: int, rows: IntArray, wanted: IntArray) -> _GroupCut:
    """Fold the lost channels of one conv group."""
    facts = rewriter.facts
    own = group_columns(layer, group)
    channels = wanted[np.isin(wanted, own)]
    source = facts.of(layer.input)
    ids = np.broadcast_to(source.ids.reshape(-1), (layer.input.meta["val"].shape[_axis(layer)],))
    lost = np.setdiff1d(own, channels)
    known = lost[~facts.varies(ids[lost]) & ~facts.is_zero(ids[lost])]
    extra = fold_channels(rewriter.gm, layer, facts, ids, rows, known)
    if extra.is_flat():
        return _GroupCut(rows, channels, None, None, extra)
    carrier = find_carrier(facts.kind[ids[channels]], facts.value[ids[channels]])
    if carrier is None:
        return _GroupCut(rows, channels, None, None, extra)
    plain = known[facts.kind[ids[known]] == Kind.CONST]
    chosen = int(channels[carrier])
    ratios = facts.value[ids[plain]] / facts.value[ids[chosen]]
    weight = get_tensor(rewriter.gm, layer.weight)
    moved = np.tensordot(cells_of(weight, layer, rows, plain), ratios, axes=([1], [0]))
    moved = moved + cells_of(weight, layer, rows, np.array([chosen]))[:, 0]
    rest = fold_channels(rewriter.gm, layer, facts, ids, rows, np.setdiff1d(known, plain))
    return _GroupCut(rows, channels, chosen, moved, rest)


def find_carrier(kinds: np.ndarray[tuple[int, ...], np.dtype[np.int8]], values: FloatArray) -> int | None:
    """Return the position of the channel with the largest constant that is not 0, or None."""
    sizes = np.where(kinds == Kind.CONST, np.abs(values), 0.0)
    return int(sizes.argmax()) if sizes.size and sizes.max() > 0 else None


def _axis(layer: Layer) -> int:
    rank = len(layer.output_shape)
    return rank - 1 if layer.kind == "linear" else rank - 1 - layer.dims


def _emit_layer(layer: Layer, rewriter: Rewriter, x: fx.Node, cuts: list[_GroupCut]) -> fx.Node:
    rows = np.concatenate([cut.rows for cut in cuts])
    extra = cuts[0].extra
    if len(cuts) > 1:
        extra = stack_maps([SpatialMap(cut.extra.classes, row) for cut in cuts for row in cut.extra.table])
    flat = extra.is_flat()
    fold = extra.table.reshape(rows.size, -1)[:, 0] if flat else np.zeros(rows.size)
    arguments: dict[str, Argument] = dict(bind(layer.node))
    arguments["input"] = x
    arguments["weight"] = _emit_weight(layer, rewriter, cuts)
    arguments["bias"] = _emit_bias(layer, rewriter, rows, fold)
    if layer.groups > 1:
        arguments["groups"] = sum(cut.groups for cut in cuts)
    new = rewriter.emit_like(layer.node, arguments)
    annotation = annotation_of(layer.node)
    if annotation is not None:
        new.meta[META_KEY] = _cut_annotation(layer, annotation, cuts)
    _record(layer, rewriter, cuts, flat, biased=arguments["bias"] is not None)
    return new if flat else _emit_table(layer, rewriter, new, extra)


def _is_whole(layer: Layer, cuts: list[_GroupCut]) -> bool:
    rows, channels = sum(cut.rows.size for cut in cuts), sum(cut.channels.size for cut in cuts)
    in_order = all(bool((np.diff(cut.channels) > 0).all()) for cut in cuts)
    carried = any(cut.carrier is not None for cut in cuts)
    total = layer.input.meta["val"].shape[_axis(layer)]
    return rows == layer.out_channels and channels == total and in_order and not carried


def _emit_weight(layer: Layer, rewriter: Rewriter, cuts: list[_GroupCut]) -> fx.Node:
    name, weight = str(layer.weight.target), get_tensor(rewriter.gm, layer.weight)
    if _is_whole(layer, cuts):
        return rewriter.constant(name, weight, ())
    parts = []
    for cut in cuts:
        part = _cut_cells(layer, weight, cut)
        if cut.carrier is not None:
            moved = torch.from_numpy(np.ascontiguousarray(cut.carrier_weight)).to(weight)
            column = int(np.flatnonzero(cut.channels == cut.carrier)[0])
            part = part.clone()
            part.select(0 if layer.kind == "conv_transpose" else 1, column).copy_(moved)
        parts.append(part)
    key = tuple(item for cut in cuts for item in (cut.rows.tobytes(), cut.channels.tobytes(), cut.carrier))
    return rewriter.constant(name, torch.cat(parts).contiguous(), key)


def _cut_cells(layer: Layer, tensor: torch.Tensor, cut: _GroupCut) -> torch.Tensor:
    """Return the rows and channels of one conv group from a weight or a mask, in its own layout."""
    rows, channels = torch.from_numpy(cut.rows), torch.from_numpy(cut.channels)
    if layer.kind == "conv_transpose":
        local = rows % (layer.out_channels // layer.groups)
        return tensor.detach().index_select(0, channels).index_select(1, local)
    local = channels % layer.weight_shape[1]
    cut_rows = tensor.detach().index_select(0, rows)
    return cut_rows if cut.groups > 1 else cut_rows.index_select(1, local)


def _emit_bias(layer: Layer, rewriter: Rewriter, rows: IntArray, fold: FloatArray) -> fx.Node | None:
    weight = get_tensor(rewriter.gm, layer.weight)
    if layer.bias is None and not bool(fold.any()):
        return None
    name = name_bias(str(layer.weight.target)) if layer.bias is None else str(layer.bias.target)
    if layer.bias is not None and rows.size == layer.out_channels and not bool(fold.any()):
        return rewriter.constant(name, get_tensor(rewriter.gm, layer.bias), ())
    values = row_bias(rewriter.gm, layer)[rows] + fold
    tensor = torch.from_numpy(values).to(weight)
    return rewriter.constant(name, tensor, (values.tobytes(),))


def _cut_annotation(layer: Layer, annotation: WeightAnnotation, cuts: list[_GroupCut]) -> WeightAnnotation:
    """Cut the mask as the weight; a carrier's column is kept where its new weight is not 0."""
    if _is_whole(layer, cuts):
        return WeightAnnotation(annotation.name, annotation.mask)
    axis = 0 if layer.kind == "conv_transpose" else 1
    parts = []
    for cut in cuts:
        part = _cut_cells(layer, annotation.mask, cut)
        if cut.carrier is not None and cut.carrier_weight is not None:
            column = int(np.flatnonzero(cut.channels == cut.carrier)[0])
            part.select(axis, column).copy_(torch.from_numpy(cut.carrier_weight != 0))
        parts.append(part)
    return WeightAnnotation(annotation.name, torch.cat(parts).contiguous())


def _emit_table(layer: Layer, rewriter: Rewriter, new: fx.Node, extra: SpatialMap) -> fx.Node:
    """Add what differs over space, [O, *spatial]."""
    value = layer.node.meta["val"]
    plane = np.ascontiguousarray(extra.full())
    tensor = torch.from_numpy(plane).to(dtype=value.dtype, device=value.device)
    constant = rewriter.constant(f"known_channels.{layer.node.name}", tensor, (plane.tobytes(),))
    return rewriter.emit(_aten.add.Tensor, (new, constant), layer.node, named=False)


def _record(layer: Layer, rewriter: Rewriter, cuts: list[_GroupCut], flat: bool, *, biased: bool) -> None:
    rewriter.record.append(
        LayerCut(
            layer=layer.node.name,
            weight=str(layer.weight.target),
            rows=tuple(int(row) for cut in cuts for row in cut.rows),
            channels=tuple(int(channel) for cut in cuts for channel in cut.channels),
            out_channels=layer.out_channels,
            in_channels=int(layer.input.meta["val"].shape[_axis(layer)]),
            carriers=tuple(cut.carrier for cut in cuts if cut.carrier is not None),
            folded="table" if not flat else "bias" if any(bool(cut.extra.table.any()) for cut in cuts) else "",
            biased=biased,
        )
    )
