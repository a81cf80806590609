"""Graph to stable text, one line a node; independent of torch's own printers."""

from __future__ import annotations

import torch
from torch import fx
from torch.fx.node import Argument

from fxprune.annotation import META_KEY, WeightAnnotation

_LONGEST_SEQUENCE = 8


def format_graph(gm: fx.GraphModule) -> str:
    """Return the whole graph as text: one line a node, constants named where they are used.

    Args:
        gm: A captured graph; nodes without shapes are printed without them.

    Returns:
        Lines without a newline at the end.
    """
    return "\n".join(format_node(node) for node in gm.graph.nodes if node.op != "get_attr")


def format_excerpt(node: fx.Node, radius: int = 3) -> str:
    """Return the lines around a node, the node itself marked with ">".

    Args:
        node: The node to show.
        radius: Lines before and after.

    Returns:
        Indented lines.
    """
    shown = [other for other in node.graph.nodes if other.op != "get_attr" or other is node]
    at = shown.index(node)
    window = shown[max(0, at - radius) : at + radius + 1]
    return "\n".join(f"{'  > ' if other is node else '    '}{format_node(other)}" for other in window)


def format_node(node: fx.Node) -> str:
    """Return one node as one line, e.g. "%y: float32[1, 3] = linear(%x, fc.weight, fc.bias)  # nnz 9/32"."""
    if node.op == "output":
        return f"return {format_argument(node.args[0])}"
    left = f"%{node.name}"
    value = format_value(node.meta.get("val"))
    left = f"{left}: {value}" if value else left
    if node.op == "placeholder":
        return f"{left} = input"
    if node.op == "get_attr":
        return f"{left} = constant {node.target}"
    parts = [format_argument(argument) for argument in node.args]
    parts += [f"{name}={format_argument(argument)}" for name, argument in node.kwargs.items()]
    return f"{left} = {format_target(node)}({', '.join(parts)}){_format_annotation(node)}"


def format_target(node: fx.Node) -> str:
    """Return the operator's short name: "conv2d", "add.Tensor", "fused_convolution"."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        packet, overload = target._schema.name.split("::")[-1], target._overloadname
        return packet if overload == "default" else f"{packet}.{overload}"
    return target if isinstance(target, str) else getattr(target, "__name__", repr(target))


def format_argument(argument: Argument) -> str:
    """Return an argument as text; nodes as %name, constants by their name in the user's model."""
    if isinstance(argument, fx.Node):
        return str(argument.target) if argument.op == "get_attr" else f"%{argument.name}"
    if isinstance(argument, (list, tuple)):
        inside = ", ".join(format_argument(item) for item in argument)
        return f"({inside})" if isinstance(argument, tuple) else f"[{inside}]"
    if isinstance(argument, dict):
        return "{" + ", ".join(f"{key}: {format_argument(item)}" for key, item in argument.items()) + "}"
    if isinstance(argument, float):
        return f"{argument:.6g}"
    return str(argument)


def format_value(value: object) -> str:
    """Return dtype and sizes of a node's value: "float32[1, 8, 4, 4]"; tuples in brackets, nothing for the unknown."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(str(size) for size in value.shape)}]"
    if isinstance(value, (list, tuple)):
        shown = [format_value(item) for item in value[:_LONGEST_SEQUENCE]]
        return f"({', '.join(shown)}{', ...' if len(value) > _LONGEST_SEQUENCE else ''})"
    return "" if value is None else repr(value)


def _format_annotation(node: fx.Node) -> str:
    annotation = node.meta.get(META_KEY)
    if not isinstance(annotation, WeightAnnotation):
        return ""
    text = f"  # nnz {annotation.nnz}/{annotation.mask.numel()}"
    if annotation.pattern is None:
        return text
    heights = ", ".join(f"{count} x {height} rows" for height, count in annotation.pattern.heights().items())
    return f"{text}, stored {annotation.pattern.stored}: {heights}"
