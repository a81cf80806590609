"""Normalisation over channels of which some are known: the others are normalised alone, with the original count.

Rewrite:
    linear(layer_norm(x, [N], gamma, beta), W, b), x constant k on the channels D, varying on the n channels L
        ->
    linear(cat([(x[L] - mean) / sigma, 1 / sigma, -mean / sigma]), [W[:, L] * gamma[L], u, w], b + W @ beta)
    with mean = (n * mean(x[L]) + sum(k)) / N, sigma^2 = (n * var(x[L]) + m * var(k)) / N
        + n * m / N^2 * (mean(x[L]) - mean(k))^2 + eps, m = N - n,
    u = sum(W[:, D] * gamma[D] * k), w = sum(W[:, D] * gamma[D])

    A known channel c becomes (k[c] - mean) / sigma * gamma[c] + beta[c], which varies: the two last columns carry what
    the layer reads of all of them. Without any constant but 0 the column 1 / sigma is not needed; rms_norm has no mean.

Needs:
    only linear layers read the result, and there are more known channels than columns that carry them.

Source:
    channels.md, section 7; the merged moments are those of Chan, Golub and LeVeque, 1979.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import fx
from torch.fx.node import Argument

from fxprune.annotation import META_KEY, WeightAnnotation
from fxprune.channels.cost import weigh_norm
from fxprune.channels.facts import Cells, Kind
from fxprune.channels.grid import IntArray
from fxprune.channels.plan import ChannelPlan
from fxprune.channels.record import CUTS_KEY, STATISTICS, LayerCut, whole_cut
from fxprune.channels.rules.base import is_activation, is_constant
from fxprune.channels.rules.statistics import explain
from fxprune.channels.spatial import FloatArray
from fxprune.layer import Layer, find_layer, name_bias
from fxprune.nodes import add_tensor, annotation_of, bind, free_name, get_tensor, set_tensor, store_tensor

_aten = torch.ops.aten
_ADD, _MUL = _aten.add.Tensor, _aten.mul.Tensor
_LAYER_NORM, _RMS_NORM = _aten.layer_norm.default, _aten.rms_norm.default
_TYPES = (torch.float32, torch.float64)
"""torch normalises other types in float32 inside the operator; as single operators they would lose that."""


@dataclass(frozen=True, eq=False)
class Norm:
    """A normalisation over the last axis with known channels, read by linear layers.

    Attributes:
        node: The call.
        source: What is normalised.
        live: Channels that vary, L.
        known: The others, D.
        values: Their constants, k.
        layers: Who reads the result.
        eps: Added to the variance, or to the mean square.
        gamma: Scale of every channel.
        beta: What is added to every channel.
    """

    node: fx.Node
    source: fx.Node
    live: IntArray
    known: IntArray
    values: FloatArray
    layers: tuple[Layer, ...]
    eps: float
    gamma: torch.Tensor
    beta: torch.Tensor

    @property
    def columns(self) -> tuple[str, ...]:
        """What stands beside the live channels: 1 / sigma, -mean / sigma."""
        scale = ("scale",) if bool(self.values.any()) else ()
        return scale if self.node.target is _RMS_NORM else (*scale, "shift")


def split_norms(gm: fx.GraphModule, plan: ChannelPlan, follow: Container[str] | None = None) -> bool:
    """Normalise varying channels alone where that costs less.

    Args:
        gm: The analysed graph; changed in place.
        plan: What would stay without it.
        follow: Names of the layers whose norm was split when a record was made; those and no others are split.

    Returns:
        Whether something changed.
    """
    found = [norm for node in gm.graph.nodes if (norm := _find_norm(gm, node, plan)) is not None]
    if follow is not None:
        chosen = [norm for norm in found if norm.layers[0].node.name in follow]
    else:
        chosen = [norm for norm in found if _is_worth(norm, plan)]
    if not chosen:
        return False
    cuts = {layer.node.name: whole_cut(layer) for layer in map(find_layer, gm.graph.nodes) if layer is not None}
    for norm in chosen:
        joined = _emit_norm(gm, norm)
        for layer in norm.layers:
            cuts[layer.node.name] = _cut_layer(gm, norm, layer, joined)
    gm.meta.setdefault(CUTS_KEY, []).append(tuple(cuts.values()))
    return True


def _find_norm(gm: fx.GraphModule, node: fx.Node, plan: ChannelPlan) -> Norm | None:
    """Return a normalisation that can be split, or None."""
    if node.target not in (_LAYER_NORM, _RMS_NORM):
        return None
    arguments, source = bind(node), cast("fx.Node", node.args[0])
    cells = plan.facts.cells.get(source)
    rank = node.meta["val"].ndim
    parameters = [item for item in (arguments.get("weight"), arguments.get("bias")) if item is not None]
    if not is_activation(source) or not isinstance(cells, Cells) or cells.axes != (rank - 1,):
        return None
    if len(cast("list[int]", arguments["normalized_shape"])) != 1 or not all(map(is_constant, parameters)):
        return None
    layers = [_find_reader(user, node) for user in node.users]
    ids = cells.ids.reshape(-1)
    known = np.flatnonzero(plan.facts.kind[ids] == Kind.CONST)
    eps = arguments["eps"]
    value = node.meta["val"]
    norm = Norm(
        node=node,
        source=source,
        live=np.setdiff1d(np.arange(ids.size), known),
        known=known,
        values=plan.facts.value[ids[known]],
        layers=tuple(layer for layer in layers if layer is not None),
        eps=torch.finfo(value.dtype).eps if eps is None else float(cast("float", eps)),
        gamma=_vector(gm, arguments.get("weight"), 1.0, ids.size),
        beta=_vector(gm, arguments.get("bias"), 0.0, ids.size),
    )
    fits = bool(layers) and len(norm.layers) == len(layers) and value.dtype in _TYPES
    return norm if fits and norm.live.size > 0 and known.size > len(norm.columns) else None


def _find_reader(user: fx.Node, node: fx.Node) -> Layer | None:
    """Return the linear layer that reads a result and nothing else of it."""
    layer = find_layer(user)
    alone = layer is not None and layer.kind == "linear" and layer.input is node and user.target is _aten.linear.default
    return layer if alone and annotation_of(user) is not None else None


def _vector(gm: fx.GraphModule, argument: Argument, default: float, size: int) -> torch.Tensor:
    if argument is None:
        return torch.full((size,), default, dtype=torch.float64)
    return get_tensor(gm, cast("fx.Node", argument)).detach().double().cpu()


def _is_worth(norm: Norm, plan: ChannelPlan) -> bool:
    """Return whether splitting saves more than it costs."""
    if plan.adds != "cost":
        return plan.adds == "compact"
    rows = sum(layer.out_channels * layer.positions for layer in norm.layers)
    gain = float(rows) * (norm.known.size - len(norm.columns))
    price = weigh_norm(norm.node, norm.live.size + len(norm.columns))
    ids = plan.facts.of(norm.source).ids.reshape(-1)[norm.known]
    return gain + plan.weigh(ids[plan.can_go(ids, explain(norm.node, norm.source))]) > price


def _emit_norm(gm: fx.GraphModule, norm: Norm) -> fx.Node:
    """Emit what stands for the normalised tensor: its varying channels and the columns that carry the known ones."""
    calls = _Calls(gm, norm.node)
    with gm.graph.inserting_before(norm.node):
        index = gm.graph.get_attr(_store(gm, norm.node, torch.from_numpy(norm.live)))
        x = calls.call(_aten.index_select.default, norm.source, -1, index)
        if norm.node.target is _RMS_NORM:
            rate = _emit_rate(calls, norm, x)
            made, columns = calls.call(_MUL, x, rate), {"scale": rate}
        else:
            rate, shift = _emit_moments(calls, norm, x)
            made, columns = calls.call(_aten.addcmul.default, shift, x, rate), {"scale": rate, "shift": shift}
        chosen = [columns[name] for name in norm.columns]
        return calls.call(_aten.cat.default, [made, *chosen], -1) if chosen else made


@dataclass(frozen=True, eq=False)
class _Calls:
    """Adds calls that take the module path of a node."""

    gm: fx.GraphModule
    like: fx.Node

    def call(self, target: Callable[..., object], *args: Argument, **kwargs: Argument) -> fx.Node:
        """Add a call."""
        made = self.gm.graph.call_function(target, args, kwargs)
        if "nn_module_stack" in self.like.meta:
            made.meta["nn_module_stack"] = self.like.meta["nn_module_stack"]
        return made

    def scale(self, x: fx.Node, factor: float, shift: float) -> fx.Node:
        """Add x * factor + shift."""
        return self.call(_ADD, self.call(_MUL, x, factor), shift)


def _emit_rate(calls: _Calls, norm: Norm, x: fx.Node) -> fx.Node:
    """Emit one over the root of the mean square of all channels, from those that vary."""
    total = norm.gamma.numel()
    square = calls.call(_aten.mean.dim, calls.call(_MUL, x, x), [-1], True)
    known = float(np.square(norm.values).sum() / total)
    return calls.call(_aten.rsqrt.default, calls.scale(square, norm.live.size / total, known + norm.eps))


def _emit_moments(calls: _Calls, norm: Norm, x: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Emit 1 / sigma and -mean / sigma of all channels, from those that vary."""
    total = norm.gamma.numel()
    live, dead = norm.live.size / total, norm.known.size / total
    center, spread = float(norm.values.mean()), float(norm.values.var())
    both = calls.call(_aten.var_mean.correction, x, [-1], correction=0, keepdim=True)
    variance, mean = (calls.call(operator.getitem, both, place) for place in (0, 1))
    apart = calls.call(_ADD, mean, -center)
    between = calls.scale(calls.call(_MUL, apart, apart), live * dead, spread * dead + norm.eps)
    within = calls.call(_MUL, variance, live)
    rate = calls.call(_aten.rsqrt.default, calls.call(_ADD, within, between))
    whole = calls.scale(mean, live, center * dead)
    return rate, calls.call(_aten.neg.default, calls.call(_MUL, whole, rate))


def _store(gm: fx.GraphModule, node: fx.Node, tensor: torch.Tensor) -> str:
    name = free_name(gm, f"kept_channels.{node.name}")
    store_tensor(gm, name, tensor.to(node.meta["val"].device))
    return name


def _cut_layer(gm: fx.GraphModule, norm: Norm, layer: Layer, joined: fx.Node) -> LayerCut:
    """Let a layer read the columns there are; return what that cuts of it."""
    note, old = annotation_of(layer.node), get_tensor(gm, layer.weight)
    assert note is not None
    weight = old.detach().double().cpu()
    scaled = weight * norm.gamma
    values, dead = torch.from_numpy(norm.values), torch.from_numpy(norm.known)
    carried = {"scale": scaled[:, dead] @ values, "shift": scaled[:, dead].sum(dim=1)}
    live = torch.from_numpy(norm.live)
    columns = [carried[name][:, None].to(old) for name in norm.columns]
    masks = [(column != 0).to(note.mask.device) for column in columns]
    added = weight @ norm.beta
    new_weight = set_tensor(gm, layer.weight, torch.cat([scaled[:, live].to(old), *columns], 1))
    new_bias = layer.bias
    if bool(added.any()) and layer.bias is None:
        new_bias = add_tensor(gm, name_bias(str(layer.weight.target)), added.to(old), new_weight)
    elif bool(added.any()) and layer.bias is not None:
        bias = get_tensor(gm, layer.bias).detach().double().cpu()
        new_bias = set_tensor(gm, layer.bias, (bias + added).to(old))
    layer.node.args, layer.node.kwargs = (joined, new_weight, new_bias), {}
    mask = torch.cat([note.mask.index_select(1, live.to(note.mask.device)), *masks], 1)
    layer.node.meta[META_KEY] = WeightAnnotation(note.name, mask)
    carriers = tuple(norm.known[: len(columns)].tolist())
    return replace(
        whole_cut(layer),
        channels=(*norm.live.tolist(), *carriers),
        carriers=carriers,
        folded=STATISTICS,
        biased=new_bias is not None,
    )
