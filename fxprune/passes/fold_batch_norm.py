"""Fold batch normalisation into the layer before it.

Rewrite:
    batch_norm(layer(x, w, b), mean, var, gamma, beta, eps)
        ->
    layer(x, w * s, (b - mean) * s + beta)
    with s = gamma / sqrt(var + eps), one per output channel; the mask is unchanged.
    The layer is a convolution, a transposed convolution or a linear layer of 2-D input. Computed in float64, rounded
    once; gamma = 0 is fine.

Needs:
    the layer has no other user, no other node reads its weight, all numbers are constants and the folded ones finite;
    otherwise a Refusal.

Source:
    Jacob et al., CVPR 2018 (arXiv 1712.05877), section 3.2.
"""

from __future__ import annotations

import logging
import operator
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import fx

from fxprune.errors import PostconditionError
from fxprune.graph import get_tensor, set_tensor
from fxprune.layer import Layer, find_layer, name_bias
from fxprune.nodes import add_tensor, bind
from fxprune.passes.base import Pass, PassResult, Refusal

logger = logging.getLogger(__name__)

_aten = torch.ops.aten
_FUNCTIONAL = _aten._native_batch_norm_legit_no_training.default
_PLAIN = _aten.batch_norm.default


@dataclass(frozen=True)
class BatchNorm:
    """A batch normalisation with running statistics.

    Attributes:
        node: The call.
        result: The node that is the normalised tensor: the call itself or its `getitem` 0.
        input: What is normalised, [N, C, ...].
        weight: gamma, [C], or None for ones.
        bias: beta, [C], or None for zeros.
        mean: Running mean, [C].
        var: Running variance, [C].
        eps: Added to the variance.
    """

    node: fx.Node
    result: fx.Node
    input: fx.Node
    weight: fx.Node | None
    bias: fx.Node | None
    mean: fx.Node
    var: fx.Node
    eps: float

    @property
    def statistics(self) -> tuple[fx.Node, ...]:
        """The nodes that need to be constants."""
        return tuple(node for node in (self.weight, self.bias, self.mean, self.var) if node is not None)


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold every batch normalisation that follows a layer into that layer."""

    preserves_output: ClassVar[bool] = True

    def requires(self, gm: fx.GraphModule) -> None:
        """Nothing: any verified graph will do."""

    def apply(self, gm: fx.GraphModule) -> PassResult:
        """Fold what can be folded."""
        modified = False
        refusals: list[Refusal] = []
        for node in list(gm.graph.nodes):
            norm = find_batch_norm(node)
            layer = find_layer(norm.input) if norm is not None else None
            if norm is None or layer is None:
                continue
            reason = _find_obstacle(gm, norm, layer)
            if reason is not None:
                refusals.append(Refusal(node.name, reason))
                continue
            _fold(gm, norm, layer)
            logger.debug("folded %s into %s", node.name, layer.node.name)
            modified = True
        return PassResult(modified, tuple(refusals))

    def ensures(self, gm: fx.GraphModule) -> None:
        """No batch normalisation that could be folded is left."""
        for node in gm.graph.nodes:
            norm = find_batch_norm(node)
            layer = find_layer(norm.input) if norm is not None else None
            if norm is not None and layer is not None and _find_obstacle(gm, norm, layer) is None:
                raise PostconditionError(f"Node '{node.name}' could be folded into '{layer.node.name}' and was not.")


def find_batch_norm(node: fx.Node) -> BatchNorm | None:
    """Return the view of a batch normalisation that uses running statistics, or None."""
    if node.op != "call_function" or node.target not in (_FUNCTIONAL, _PLAIN):
        return None
    arguments = bind(node)
    if arguments.get("training", False) or arguments["running_mean"] is None:
        return None
    result = node
    if node.target is _FUNCTIONAL:
        items = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
        if len(items) != 1 or len(node.users) != 1:
            return None
        result = items[0]
    return BatchNorm(
        node=node,
        result=result,
        input=cast("fx.Node", arguments["input"]),
        weight=cast("fx.Node | None", arguments["weight"]),
        bias=cast("fx.Node | None", arguments["bias"]),
        mean=cast("fx.Node", arguments["running_mean"]),
        var=cast("fx.Node", arguments["running_var"]),
        eps=cast("float", arguments["eps"]),
    )


def _find_obstacle(gm: fx.GraphModule, norm: BatchNorm, layer: Layer) -> str | None:
    """Return why the normalisation cannot be folded into the layer, or None."""
    if len(layer.node.users) != 1:
        return f"{layer.node.name}, whose output it normalises, has {len(layer.node.users)} users."
    if len(layer.weight.users) != 1:
        return f"the weight {layer.weight.target} is read by {len(layer.weight.users)} nodes."
    if layer.residual is not None or layer.activation is not None:
        return f"{layer.node.name} already has an epilogue between its bias and the normalisation."
    changing = [node.name for node in norm.statistics if node.op != "get_attr"]
    if changing:
        return f"its numbers are computed from the input ({', '.join(changing)})."
    axes = len(layer.output_shape)
    if axes != (2 if layer.kind == "linear" else layer.dims + 2):
        return f"it normalises axis 1 of {axes}, which is not the channel axis of {layer.node.name}."
    if norm.result.meta["val"].dtype != layer.node.meta["val"].dtype:
        return f"it changes the type from {layer.node.meta['val'].dtype} to {norm.result.meta['val'].dtype}."
    weight, bias = _folded_numbers(gm, norm, layer)
    if not (bool(weight.isfinite().all()) and bool(bias.isfinite().all())):
        return "the folded weight or bias would not be finite (a running variance that is negative, tiny or NaN)."
    return None


def _fold(gm: fx.GraphModule, norm: BatchNorm, layer: Layer) -> None:
    """Write the folded weight and bias into the layer and take the normalisation out."""
    weight, bias = _folded_numbers(gm, norm, layer)
    new_weight = set_tensor(gm, layer.weight, weight)
    if layer.bias is None:
        new_bias = add_tensor(gm, name_bias(str(layer.weight.target)), bias, new_weight)
    else:
        new_bias = set_tensor(gm, layer.bias, bias)
    layer.node.args = (layer.input, new_weight, new_bias, *layer.node.args[3:])
    layer.node.kwargs = {name: value for name, value in layer.node.kwargs.items() if name != "bias"}
    norm.result.replace_all_uses_with(layer.node)
    for node in dict.fromkeys((norm.result, norm.node)):
        gm.graph.erase_node(node)


def _folded_numbers(gm: fx.GraphModule, norm: BatchNorm, layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the folded weight and bias [O], rounded once to the weight's type."""
    weight = get_tensor(gm, layer.weight)
    mean, var = (get_tensor(gm, node).double() for node in (norm.mean, norm.var))
    scale = torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        scale = scale * get_tensor(gm, norm.weight).double()
    bias = -mean if layer.bias is None else get_tensor(gm, layer.bias).double() - mean
    bias = bias * scale
    if norm.bias is not None:
        bias = bias + get_tensor(gm, norm.bias).double()
    return scale_outputs(weight, scale, layer).to(weight.dtype), bias.to(weight.dtype)


def scale_outputs(weight: torch.Tensor, scale: torch.Tensor, layer: Layer) -> torch.Tensor:
    """Multiply a weight by one number per output channel, in float64.

    Args:
        weight: [O, ...], or [I, O / groups, ...] of a transposed convolution.
        scale: [O], float64.
        layer: The layer that owns the weight.

    Returns:
        The scaled weight, float64, of the same shape.
    """
    if layer.kind != "conv_transpose":
        return weight.double() * scale.view(-1, *[1] * (weight.ndim - 1))
    grouped = weight.double().view(layer.groups, -1, *weight.shape[1:])
    return (grouped * scale.view(layer.groups, 1, -1, *[1] * (weight.ndim - 2))).view(weight.shape)
