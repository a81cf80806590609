"""Convolutions, transposed convolutions and linear layers: where channels die and where constants are folded."""

from __future__ import annotations

import numpy as np
from torch import fx

from fxprune.channels.facts import Cells, Completion, Facts
from fxprune.channels.fold import constant_rows, is_depthwise
from fxprune.channels.grid import BoolArray, IntArray
from fxprune.channels.rewriter import Rewriter
from fxprune.channels.rules.base import Rule, opaque_cells, pin_inputs
from fxprune.channels.rules.layer_cut import rewrite_layer
from fxprune.layer import Layer, find_layer
from fxprune.nodes import get_tensor


class LayerRule(Rule):
    """A row that reads nothing that varies is a constant; an input channel that no used row reads is unused."""

    def forward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Find the rows that do not depend on the input, and their values."""
        layer = find_layer(node)
        value = node.meta["val"]
        if layer is None or layer.input.op == "get_attr":
            facts.cells[node] = opaque_cells(value, facts)
            return
        source = facts.of(layer.input)
        if not contracts(layer, source):
            grid = source.grid if passes_through(layer, source) else (1,) * value.ndim
            facts.cells[node] = Cells(tuple(value.shape), facts.new_ids(grid))
            if passes_through(layer, source):
                facts.tie(facts.of(node).ids, source.ids)
            return
        reads = find_reads(gm, layer)
        facts.reads[node] = reads
        axis = channel_axis(layer)
        grid = tuple(size if other == axis else 1 for other, size in enumerate(value.shape))
        ids = facts.new_ids(grid)
        facts.cells[node] = Cells(tuple(value.shape), ids)
        inputs = input_ids(layer, source)
        varying = rows_that_read(layer, reads, facts.varies(inputs))
        constant_rows(gm, layer, facts, inputs, ids.reshape(-1), np.flatnonzero(~varying))
        if is_depthwise(layer) and layer.out_channels == inputs.size and source.ids.size > 1:
            _tie_depthwise(layer, facts, ids.reshape(-1), inputs)

    def backward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """An input channel is used if a used row that varies reads it."""
        layer = find_layer(node)
        if layer is None or layer.input.op == "get_attr":
            pin_inputs(node, facts)
            return
        source, out = facts.of(layer.input), facts.of(node).ids
        if node not in facts.reads:
            if passes_through(layer, source):
                facts.use(source.ids, facts.used[out])
            else:
                pin_inputs(node, facts)
            return
        active = facts.used[out.reshape(-1)] & facts.varies(out.reshape(-1))
        facts.use(input_ids(layer, source), columns_read_by(layer, facts.reads[node], active))

    def rewrite(self, node: fx.Node, rewriter: Rewriter) -> None:
        """Cut rows and columns, fold constants."""
        layer = find_layer(node)
        if layer is None or layer.input.op == "get_attr":
            rewriter.copy_full(node)
            return
        rewrite_layer(layer, rewriter)


def _tie_depthwise(layer: Layer, facts: Facts, ids: IntArray, inputs: IntArray) -> None:
    """Tie results to inputs, except where a result is known and its input is not: it can go alone."""
    loose = facts.varies(inputs) & ~facts.varies(ids)
    facts.tie(ids[~loose], inputs[~loose])
    if bool(loose.any()):
        reason = f"taking the other channels out of {layer.input.name} for {layer.node.name} would cost more"
        facts.completions.append(Completion(layer.node, layer.input, inputs[loose], ids[loose], reason))


def channel_axis(layer: Layer) -> int:
    """Return the channel axis of input and output, counted from the front."""
    rank = len(layer.output_shape)
    return rank - 1 if layer.kind == "linear" else rank - 1 - layer.dims


def contracts(layer: Layer, source: Cells) -> bool:
    """Return whether the ids of the input depend on the contracted axis only."""
    return set(source.axes) <= {channel_axis(layer)}


def passes_through(layer: Layer, source: Cells) -> bool:
    """Return whether a linear layer runs along an axis without ids, so that the ids of other axes pass."""
    return layer.kind == "linear" and channel_axis(layer) not in source.axes


def input_ids(layer: Layer, source: Cells) -> IntArray:
    """Return the id of every input channel, [I]."""
    count = layer.input.meta["val"].shape[channel_axis(layer)]
    return np.broadcast_to(source.ids.reshape(-1), (count,))


def find_reads(gm: fx.GraphModule, layer: Layer) -> BoolArray:
    """Return which input channels of its conv group each row has a weight for, [O, I / groups]."""
    cells = (get_tensor(gm, layer.weight) != 0).cpu().numpy()
    nonzero = cells.reshape(*cells.shape[:2], -1).any(axis=2)  # several times faster than `any` of torch
    if layer.kind == "conv_transpose":
        grouped = nonzero.reshape(layer.groups, -1, nonzero.shape[1])
        nonzero = grouped.swapaxes(1, 2).reshape(layer.out_channels, -1)
    return np.asarray(nonzero, dtype=bool)


def rows_that_read(layer: Layer, reads: BoolArray, channels: BoolArray) -> BoolArray:
    """Return which rows read one of the channels, [O].

    Args:
        layer: The layer.
        reads: [O, I / groups].
        channels: [I].
    """
    grouped = reads.reshape(layer.groups, -1, reads.shape[1])
    return np.asarray((grouped & channels.reshape(layer.groups, 1, -1)).any(axis=2).reshape(-1))


def columns_read_by(layer: Layer, reads: BoolArray, rows: BoolArray) -> BoolArray:
    """Return which input channels one of the rows reads, [I]; `rows` is [O]."""
    grouped = reads.reshape(layer.groups, -1, reads.shape[1])
    return np.asarray((grouped & rows.reshape(layer.groups, -1, 1)).any(axis=1).reshape(-1))
