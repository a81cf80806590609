"""Fuse what follows a layer into it: a residual addition, then one activation.

Rewrite:
    activation(conv2d(x, w, b, ...) + r)
        ->
    fused_convolution(x, w, b, r, ..., activation), at the place of the activation
    with either part missing; linear becomes fused_linear. relu6 and clamp(lo, hi) are hardtanh.
    Of two layers added to each other the later one takes the addition, so that the other's result exists by then.

Needs:
    an annotated convolution (not transposed) or linear layer; its output, and the sum, have one user each; the residual
    has exactly the output's shape and type and is added once (alpha = 1); otherwise a Refusal.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import fx

from fxprune.errors import PostconditionError, PreconditionError
from fxprune.graph import annotation_of, copy_meta
from fxprune.layer import Layer, find_layer
from fxprune.nodes import bind
from fxprune.operators import fused_convolution, fused_linear
from fxprune.passes.base import Pass, PassResult, Refusal

logger = logging.getLogger(__name__)

_aten = torch.ops.aten
_ADD = _aten.add.Tensor
_PLAIN_ACTIVATIONS = {
    _aten.relu.default: ("relu", ()),
    _aten.relu6.default: ("hardtanh", (0.0, 6.0)),
    _aten.silu.default: ("silu", ()),
    _aten.hardswish.default: ("hardswish", ()),
    _aten.sigmoid.default: ("sigmoid", ()),
}
_GELU_NAMES = {"none": "gelu", "tanh": "gelu_tanh"}


@dataclass(frozen=True)
class Epilogue:
    """What one layer is fused with.

    Attributes:
        residual: The other operand of the addition, or None.
        activation: Name of the activation, or None.
        activation_args: Its numbers.
        last: The node that the fused node replaces: the addition or the activation; the layer itself if none is fused.
        blocked: A node that could have been fused as well, or None.
        reason: Why it is not.
    """

    last: fx.Node
    residual: fx.Node | None = None
    activation: str | None = None
    activation_args: tuple[float, ...] = ()
    blocked: fx.Node | None = None
    reason: str = ""


@dataclass(frozen=True)
class FuseEpilogue(Pass):
    """Fuse residual additions and activations into the layers before them."""

    preserves_output: ClassVar[bool] = True

    def requires(self, gm: fx.GraphModule) -> None:
        """Layers are annotated."""
        for node in gm.graph.nodes:
            if find_layer(node) is not None and annotation_of(node) is None:
                raise PreconditionError(f"Layer '{node.name}' has no annotation; run annotate(gm, masks) first.")

    def apply(self, gm: fx.GraphModule) -> PassResult:
        """Fuse what can be fused."""
        modified = False
        blocked: dict[fx.Node, Refusal] = {}
        order = {node: index for index, node in enumerate(gm.graph.nodes)}
        for node in list(gm.graph.nodes):
            layer = find_fusable(node)
            if layer is None:
                continue
            epilogue = find_epilogue(layer, order)
            if epilogue.blocked is not None:
                blocked.setdefault(epilogue.blocked, Refusal(node.name, epilogue.reason))
            if epilogue.last is node:
                continue
            fused = _fuse(gm, layer, epilogue)
            order[fused] = order[epilogue.last]
            logger.debug("fused %s into %s", epilogue.last.name, node.name)
            modified = True
        left = set(gm.graph.nodes)  # without what another layer took
        return PassResult(modified, tuple(refusal for node, refusal in blocked.items() if node in left))

    def ensures(self, gm: fx.GraphModule) -> None:
        """No epilogue that could be fused is left."""
        order = {node: index for index, node in enumerate(gm.graph.nodes)}
        for node in gm.graph.nodes:
            layer = find_fusable(node)
            if layer is not None and find_epilogue(layer, order).last is not node:
                raise PostconditionError(f"What follows '{node.name}' could be fused into it and was not.")


def find_fusable(node: fx.Node) -> Layer | None:
    """Return the view of an annotated convolution or linear layer without an epilogue, or None."""
    layer = find_layer(node)
    if layer is None or annotation_of(node) is None or layer.kind == "conv_transpose":
        return None
    return None if node.target in (fused_convolution, fused_linear) else layer


def find_activation(node: fx.Node) -> tuple[str, tuple[float, ...]] | None:
    """Return an activation's name and numbers, or None if the node is none that a kernel knows."""
    if node.op != "call_function":
        return None
    if node.target in _PLAIN_ACTIVATIONS:
        return _PLAIN_ACTIVATIONS[node.target]
    if node.target is _aten.gelu.default:
        return _GELU_NAMES[str(bind(node)["approximate"])], ()
    if node.target is _aten.hardtanh.default:
        arguments = bind(node)
        return "hardtanh", (float(cast("float", arguments["min_val"])), float(cast("float", arguments["max_val"])))
    if node.target is _aten.clamp.default:
        bounds = (bind(node)["min"], bind(node)["max"])
        low, high = (float(bound) if isinstance(bound, (int, float)) else None for bound in bounds)
        if low is not None and high is not None and low <= high:
            return "hardtanh", (low, high)
    return None


def find_epilogue(layer: Layer, order: dict[fx.Node, int]) -> Epilogue:
    """Find what the layer can be fused with.

    Args:
        layer: A layer that `find_fusable` returned.
        order: The place of each node in the graph.

    Returns:
        The epilogue; its `last` is the layer's own node if there is nothing to fuse.
    """
    node = layer.node
    near = [user for user in node.users if user.target is _ADD or find_activation(user) is not None]
    if not near:
        return Epilogue(node)
    if len(node.users) != 1:
        return Epilogue(
            node, blocked=near[0], reason=f"its output has {len(node.users)} users, not {near[0].name} alone."
        )
    if near[0].target is not _ADD:
        return _with_activation(Epilogue(node))
    residual = _find_residual(near[0], node)
    obstacle = _find_obstacle(near[0], node, residual)
    if obstacle is not None or residual is None:
        return Epilogue(node, blocked=near[0], reason=obstacle or "")
    if find_fusable(residual) is not None and len(residual.users) == 1 and order[residual] > order[node]:
        return Epilogue(node)
    return _with_activation(Epilogue(near[0], residual))


def _find_residual(add: fx.Node, node: fx.Node) -> fx.Node | None:
    """Return the other operand of an addition, None if it is a number or the node itself."""
    arguments = bind(add)
    other = arguments["other"] if arguments["self"] is node else arguments["self"]
    return other if isinstance(other, fx.Node) and other is not node else None


def _find_obstacle(add: fx.Node, node: fx.Node, residual: fx.Node | None) -> str | None:
    """Return why an addition cannot be fused into a layer, or None."""
    arguments = bind(add)
    if residual is None:
        return f"{add.name} adds a number, or the output to itself."
    if arguments["alpha"] != 1:
        return f"{add.name} scales an operand by alpha = {arguments['alpha']}."
    found, needed = residual.meta["val"], node.meta["val"]
    if found.shape != needed.shape or found.dtype != needed.dtype:
        return (
            f"{add.name} broadcasts or converts: the output is {needed.dtype} {list(needed.shape)}, "
            f"the residual {found.dtype} {list(found.shape)}."
        )
    return None


def _with_activation(epilogue: Epilogue) -> Epilogue:
    """Extend an epilogue by the activation that follows its last node."""
    last = epilogue.last
    followers = [user for user in last.users if find_activation(user) is not None]
    if not followers:
        return epilogue
    if len(last.users) != 1:
        reason = f"{last.name} has {len(last.users)} users, not {followers[0].name} alone."
        return replace(epilogue, blocked=followers[0], reason=reason)
    found = find_activation(followers[0])
    assert found is not None
    return replace(epilogue, last=followers[0], activation=found[0], activation_args=found[1])


def _fuse(gm: fx.GraphModule, layer: Layer, epilogue: Epilogue) -> fx.Node:
    """Put the fused node in the place of the last node and take out what it contains."""
    linear = layer.kind == "linear"
    geometry = () if linear else (layer.stride, layer.padding, layer.dilation, layer.groups)
    operands = (layer.input, layer.weight, layer.bias, epilogue.residual)
    with gm.graph.inserting_before(epilogue.last):
        fused = gm.graph.call_function(
            fused_linear if linear else fused_convolution,
            (*operands, *geometry, epilogue.activation, epilogue.activation_args),
        )
    copy_meta(layer.node, fused)
    fused.meta["val"] = epilogue.last.meta["val"]
    epilogue.last.replace_all_uses_with(fused)
    doomed = epilogue.last
    while doomed is not layer.node:
        before = next(node for node in doomed.all_input_nodes if node is not epilogue.residual)
        gm.graph.erase_node(doomed)
        doomed = before
    gm.graph.erase_node(layer.node)
    return fused
