"""What channel-wise operators make of known values, and which axes they mix."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from torch import fx

from fxprune.channels.facts import Facts, Kind
from fxprune.channels.grid import IntArray
from fxprune.channels.rules.base import constant_of, is_constant
from fxprune.channels.spatial import FloatArray, SpatialMap
from fxprune.nodes import bind


def last_axes(count: int) -> Callable[[fx.Node], tuple[int, ...]]:
    """Return a function that names the last `count` axes, whatever the node."""
    return lambda _: tuple(range(-count, 0))


def no_axes(_: fx.Node) -> tuple[int, ...]:
    """Name no axis: every position is treated by itself."""
    return ()


def axes_of_dim(node: fx.Node) -> tuple[int, ...]:
    """Name the axes of the argument `dim`; all axes if it is None or empty."""
    dim = bind(node).get("dim")
    if isinstance(dim, int):
        return (dim,)
    axes = tuple(cast("Sequence[int]", dim or ()))
    return axes or tuple(range(cast("fx.Node", node.args[0]).meta["val"].ndim))


def axes_of_pad(node: fx.Node) -> tuple[int, ...]:
    """Name the axes that are padded."""
    pad = cast("Sequence[int]", node.args[1])
    return tuple(-1 - index // 2 for index, size in enumerate(pad) if size != 0)


def keep_value(gm: fx.GraphModule, node: fx.Node, facts: Facts, sources: IntArray, results: IntArray) -> None:
    """A constant stays: maximum, resizing (its weights sum to 1), reflecting pads, unpadded averages."""
    known = np.asarray(facts.kind[sources] == Kind.CONST)
    facts.set_constants(results[known], facts.value[sources[known]])


def keep_zero(gm: fx.GraphModule, node: fx.Node, facts: Facts, sources: IntArray, results: IntArray) -> None:
    """Only 0 stays."""
    zero = facts.is_zero(sources)
    facts.set_constants(results[zero], np.zeros(int(zero.sum())))


def forget_value(gm: fx.GraphModule, node: fx.Node, facts: Facts, sources: IntArray, results: IntArray) -> None:
    """Nothing is known of the result."""


def average(gm: fx.GraphModule, node: fx.Node, facts: Facts, sources: IntArray, results: IntArray) -> None:
    """A constant stays unless zeros of the padding are counted or the divisor is not the window's size."""
    arguments = bind(node)
    padding = arguments.get("padding", 0)
    padded = any(cast("Sequence[int]", padding)) if isinstance(padding, Sequence) else bool(padding)
    divisor = arguments.get("divisor_override")
    if (padded and bool(arguments.get("count_include_pad", True))) or (divisor and arguments.get("ceil_mode")):
        keep_zero(gm, node, facts, sources, results)
        return
    kernel = cast("Sequence[int]", arguments["kernel_size"])
    dims = cast("fx.Node", node.args[0]).meta["val"].ndim - 2
    window = math.prod(kernel) if len(kernel) == dims else kernel[0] ** dims
    factor = window / float(cast("float", divisor)) if divisor else 1.0
    known = np.asarray(facts.kind[sources] == Kind.CONST)
    facts.set_constants(results[known], facts.value[sources[known]] * factor)


def mean(gm: fx.GraphModule, node: fx.Node, facts: Facts, sources: IntArray, results: IntArray) -> None:
    """A constant stays; the mean of a map over its whole plane is a constant."""
    keep_value(gm, node, facts, sources, results)
    shape = cast("fx.Node", node.args[0]).meta["val"].shape
    rank = len(shape)
    dim = bind(node).get("dim", bind(node).get("output_size"))
    pooled = "adaptive" in str(node.target)
    whole = all(size == 1 for size in cast("Sequence[int]", dim)) if pooled else _covers_plane(node, rank)
    if not whole:
        return
    for source, result in zip(sources.tolist(), results.tolist(), strict=True):
        if facts.kind[source] == Kind.MAP and len(facts.maps[source].classes) == rank - 2:
            facts.set_constants(np.array([result]), facts.maps[source].mean().reshape(1))


def _covers_plane(node: fx.Node, rank: int) -> bool:
    return {axis % rank for axis in axes_of_dim(node)} == set(range(2, rank))


def total(gm: fx.GraphModule, node: fx.Node, facts: Facts, sources: IntArray, results: IntArray) -> None:
    """A constant times the number of positions."""
    shape = cast("fx.Node", node.args[0]).meta["val"].shape
    count = math.prod(shape[axis] for axis in axes_of_dim(node))
    known = np.asarray(facts.kind[sources] == Kind.CONST)
    facts.set_constants(results[known], facts.value[sources[known]] * count)


def uniform(gm: fx.GraphModule, node: fx.Node, facts: Facts, sources: IntArray, results: IntArray) -> None:
    """The softmax of a constant over an axis of length n is 1 / n."""
    shape = cast("fx.Node", node.args[0]).meta["val"].shape
    known = np.asarray(facts.kind[sources] == Kind.CONST)
    count = math.prod(shape[axis] for axis in axes_of_dim(node))
    facts.set_constants(results[known], np.full(int(known.sum()), 1.0 / count))


def log_uniform(gm: fx.GraphModule, node: fx.Node, facts: Facts, sources: IntArray, results: IntArray) -> None:
    """The log_softmax of a constant over an axis of length n is -log n."""
    shape = cast("fx.Node", node.args[0]).meta["val"].shape
    known = np.asarray(facts.kind[sources] == Kind.CONST)
    count = math.prod(shape[axis] for axis in axes_of_dim(node))
    facts.set_constants(results[known], np.full(int(known.sum()), -math.log(count)))


def slope(gm: fx.GraphModule, node: fx.Node, facts: Facts, sources: IntArray, results: IntArray) -> None:
    """A constant below 0 is multiplied by its channel's slope."""
    slopes = _numbers(gm, bind(node)["weight"])
    if slopes is None or slopes.size not in (1, sources.size):
        return
    known = np.asarray(facts.kind[sources] == Kind.CONST)
    values = facts.value[sources]
    values = np.where(values < 0, values * slopes.reshape(-1), values)
    facts.set_constants(results[known], values[known])


def pad(gm: fx.GraphModule, node: fx.Node, facts: Facts, sources: IntArray, results: IntArray) -> None:
    """Padding with the constant itself changes nothing; with another number it makes a map."""
    arguments = bind(node)
    if arguments.get("mode", "constant") != "constant":  # mirrored, repeated or wrapped around
        keep_value(gm, node, facts, sources, results)
        return
    fill = float(cast("float", arguments.get("value") or 0.0))
    sizes = cast("Sequence[int]", arguments["pad"])
    shape = cast("fx.Node", node.args[0]).meta["val"].shape
    planes = tuple(shape[2:])
    for source, result in zip(sources.tolist(), results.tolist(), strict=True):
        if facts.kind[source] == Kind.VARYING:
            continue
        if facts.kind[source] == Kind.CONST and facts.value[source] == fill:
            facts.set_constants(np.array([result]), np.array([fill]))
        elif len(sizes) // 2 <= len(planes) and min(sizes) >= 0:
            padded = _pad_map(facts.map_of(source, planes), sizes, fill)
            facts.set_maps(np.array([result]), SpatialMap(padded.classes, padded.table[None]))


def pad_by_mode(gm: fx.GraphModule, node: fx.Node, facts: Facts, sources: IntArray, results: IntArray) -> None:
    """Padding with the channel's own values keeps a constant; the mode "constant" is that of `pad`."""
    if bind(node).get("mode", "constant") == "constant":
        pad(gm, node, facts, sources, results)
    else:
        keep_value(gm, node, facts, sources, results)


def _pad_map(plane: SpatialMap, sizes: Sequence[int], fill: float) -> SpatialMap:
    classes, table = list(plane.classes), plane.table
    for index in range(len(sizes) // 2):
        axis = len(classes) - 1 - index
        low, high = sizes[2 * index], sizes[2 * index + 1]
        if low or high:
            table = np.concatenate([table, np.full_like(table.take([0], axis=axis), fill)], axis=axis)
            classes[axis] = np.pad(classes[axis], (low, high), constant_values=table.shape[axis] - 1)
    return SpatialMap(tuple(classes), table)


def normalise(gm: fx.GraphModule, node: fx.Node, facts: Facts, sources: IntArray, results: IntArray) -> None:
    """Scale and shift a constant as batch normalisation does; gamma = 0 gives beta whatever the input."""
    arguments = bind(node)
    if sources.size != cast("fx.Node", node.args[0]).meta["val"].shape[1]:
        return
    numbers = {name: _numbers(gm, arguments.get(name)) for name in ("weight", "bias", "running_mean", "running_var")}
    mean, var = numbers["running_mean"], numbers["running_var"]
    if mean is None or var is None:
        return
    gamma = numbers["weight"] if numbers["weight"] is not None else np.ones_like(mean)
    beta = numbers["bias"] if numbers["bias"] is not None else np.zeros_like(mean)
    scale = gamma / np.sqrt(var + float(cast("float", arguments["eps"])))
    shift = beta - scale * mean
    known = np.asarray(facts.kind[sources] == Kind.CONST)
    facts.set_constants(results[known], scale[known] * facts.value[sources[known]] + shift[known])
    for index in np.flatnonzero(facts.kind[sources] == Kind.MAP).tolist():
        plane = facts.maps[int(sources[index])]
        moved = plane.table[None] * scale[index] + shift[index]
        facts.set_maps(results[[index]], SpatialMap(plane.classes, moved))
    flat = scale == 0
    facts.set_constants(results[flat], shift[flat])


def _numbers(gm: fx.GraphModule, argument: object) -> FloatArray | None:
    if not is_constant(argument):
        return None
    return np.asarray(constant_of(gm, cast("fx.Node", argument)).cpu().numpy())
