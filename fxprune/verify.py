"""The rules of the annotated graph: its written specification, one small function each.

A rule looks at one node and returns a sentence if the node breaks it, else None.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np
import torch
from torch import fx

from fxprune.annotation import META_KEY, WeightAnnotation
from fxprune.errors import VerifyError
from fxprune.layer import Layer, find_layer
from fxprune.nodes import VIEWS, annotation_of, bind, find_tensor, module_path
from fxprune.printer import format_excerpt

Rule = Callable[[fx.GraphModule, fx.Node], str | None]

_OPERATIONS = ("placeholder", "get_attr", "call_function", "output")


def verify(gm: fx.GraphModule) -> None:
    """Check every rule on every node.

    Args:
        gm: An annotated graph.

    Raises:
        VerifyError: Names the node and its module, says what is wrong, and shows the lines around it.
    """
    for node in gm.graph.nodes:
        for rule in RULES:
            fault = rule(gm, node)
            if fault is not None:
                where = f"Node '{node.name}' (module '{module_path(node)}')"
                raise VerifyError(f"{where}: {fault}\n{format_excerpt(node)}")
    try:
        gm.graph.lint()
    except RuntimeError as error:
        raise VerifyError(f"The graph is not well-formed: {error}. Build it with the methods of fx.Graph.") from error


def check_operation(_: fx.GraphModule, node: fx.Node) -> str | None:
    """Nodes are inputs, constants, function calls and one output; no modules, no methods."""
    if node.op in _OPERATIONS:
        return None
    return f"it is a {node.op}; a captured graph holds {', '.join(_OPERATIONS)} only."


def check_output(_: fx.GraphModule, node: fx.Node) -> str | None:
    """The output is one flat tuple of nodes and plain values."""
    if node.op != "output":
        return None
    values = node.args[0]
    flat = isinstance(values, tuple) and not any(isinstance(value, (list, tuple, dict)) for value in values)
    return None if flat else "the output is not a flat tuple; how it nests is kept in Captured.out_spec."


def check_functional(_: fx.GraphModule, node: fx.Node) -> str | None:
    """No operator writes into its inputs."""
    if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
        return f"{node.target} writes into its input; a captured graph is functional."
    return None


def check_constant(gm: fx.GraphModule, node: fx.Node) -> str | None:
    """A constant exists, needs no gradient, and has the sizes and type of its `meta["val"]`."""
    if node.op != "get_attr":
        return None
    tensor, value = find_tensor(gm, str(node.target)), node.meta.get("val")
    if tensor is None:
        return f"constant '{node.target}' does not exist; store it with set_tensor or add_tensor."
    if tensor.requires_grad:
        return f"constant '{node.target}' requires a gradient; store it detached."
    if not isinstance(value, torch.Tensor) or value.shape != tensor.shape or value.dtype != tensor.dtype:
        return f"constant '{node.target}' is {tensor.dtype} {list(tensor.shape)}, its node says {value}."
    return None


def check_value(_: fx.GraphModule, node: fx.Node) -> str | None:
    """Every input and every call has `meta["val"]`."""
    if node.op in ("placeholder", "call_function") and "val" not in node.meta:
        return "it has no meta['val']; copy it with copy_meta or run tidy."
    return None


def check_view(_: fx.GraphModule, node: fx.Node) -> str | None:
    """The sizes written in a view are the sizes of its value."""
    if node.target not in VIEWS:
        return None
    sizes = bind(node)["size"] if "size" in bind(node) else bind(node)["shape"]
    found = list(node.meta["val"].shape)
    assert isinstance(sizes, (list, tuple))
    fits = len(sizes) == len(found) and all(
        not isinstance(size, int) or size in (-1, have) for size, have in zip(sizes, found, strict=True)
    )
    return None if fits else f"it views as {list(sizes)}, its value has shape {found}; a cut channel left a literal."


def check_layer_shapes(_: fx.GraphModule, node: fx.Node) -> str | None:
    """Input, weight, bias and output of a layer agree in their channels."""
    layer = find_layer(node)
    if layer is None:
        return None
    axis = -1 if layer.kind == "linear" else -1 - layer.dims
    found: dict[str, object] = {
        "input channels": layer.input.meta["val"].shape[axis],
        "output channels": layer.output_shape[axis],
    }
    needed: dict[str, object] = {"input channels": _input_channels(layer), "output channels": layer.out_channels}
    if layer.bias is not None:
        found["bias sizes"], needed["bias sizes"] = list(layer.bias.meta["val"].shape), [layer.out_channels]
    wrong = [
        f"{what} {found[what]} where its weight has {needed[what]}" for what in found if found[what] != needed[what]
    ]
    return f"weight {list(layer.weight_shape)}, groups {layer.groups}: {'; '.join(wrong)}." if wrong else None


def _input_channels(layer: Layer) -> int:
    if layer.kind == "conv_transpose":
        return layer.weight_shape[0]
    return layer.weight_shape[1] * layer.groups


def check_residual(_: fx.GraphModule, node: fx.Node) -> str | None:
    """The residual of a fused layer has exactly the output's shape and type."""
    layer = find_layer(node)
    if layer is None or layer.residual is None:
        return None
    value, output = layer.residual.meta["val"], node.meta["val"]
    if value.shape == output.shape and value.dtype == output.dtype:
        return None
    return f"residual is {value.dtype} {list(value.shape)}, the output {output.dtype} {list(output.shape)}."


def check_annotation_place(_: fx.GraphModule, node: fx.Node) -> str | None:
    """An annotation stands on a node that owns a weight, and nowhere else."""
    found = node.meta.get(META_KEY)
    if found is None:
        return None
    if not isinstance(found, WeightAnnotation):
        return f"meta['{META_KEY}'] is a {type(found).__name__}; it needs to be a WeightAnnotation."
    return None if find_layer(node) is not None else "it carries an annotation and owns no weight."


def check_mask(_: fx.GraphModule, node: fx.Node) -> str | None:
    """The mask is bool, on the CPU, with the weight's shape."""
    annotation, layer = annotation_of(node), find_layer(node)
    if annotation is None or layer is None:
        return None
    mask = annotation.mask
    if mask.dtype != torch.bool or mask.device.type != "cpu":
        return f"mask is {mask.dtype} on {mask.device}; it needs to be bool on the CPU."
    if tuple(mask.shape) != layer.weight_shape:
        return (
            f"mask has shape {list(mask.shape)}, its weight has {list(layer.weight_shape)}.\n"
            "A pass that cuts a weight cuts its mask with it."
        )
    return None


def check_zeros(gm: fx.GraphModule, node: fx.Node) -> str | None:
    """The weight is exactly zero where its mask is False, once the mask is final."""
    annotation, layer = annotation_of(node), find_layer(node)
    if annotation is None or layer is None or annotation.nnz == annotation.mask.numel():
        return None
    if annotation.scores is not None:
        return None
    weight = find_tensor(gm, str(layer.weight.target))
    if weight is None or weight.is_meta:
        return None
    count = int((weight.cpu() != 0).logical_and(~annotation.mask).count_nonzero())
    return f"{count} weights are not zero where the mask is False; annotate writes the zeros." if count else None


def check_pattern(_: fx.GraphModule, node: fx.Node) -> str | None:
    """A pattern has the shape of the 2-D view and covers every True cell of the mask."""
    annotation = annotation_of(node)
    if annotation is None or annotation.pattern is None:
        return None
    mask = annotation.mask.reshape(annotation.mask.shape[0], -1).numpy()
    if annotation.pattern.shape != mask.shape:
        return f"pattern has shape {list(annotation.pattern.shape)}, the mask's 2-D view {list(mask.shape)}."
    missed = int(np.count_nonzero(mask & ~annotation.pattern.covered()))
    return f"pattern misses {missed} of {annotation.nnz} kept weights." if missed else None


def check_getitem(_: fx.GraphModule, node: fx.Node) -> str | None:
    """A getitem takes an existing element of a tuple or list."""
    if node.target is not operator.getitem:
        return None
    source, index = node.args[0], node.args[1]
    value = source.meta.get("val") if isinstance(source, fx.Node) else None
    if isinstance(value, (list, tuple)) and isinstance(index, int) and index < len(value):
        return None
    count = len(value) if isinstance(value, (list, tuple)) else "no"
    return f"it takes element {index} of something with {count} elements."


RULES: tuple[Rule, ...] = (
    check_operation,
    check_output,
    check_functional,
    check_constant,
    check_value,
    check_getitem,
    check_view,
    check_layer_shapes,
    check_residual,
    check_annotation_place,
    check_mask,
    check_zeros,
    check_pattern,
)
