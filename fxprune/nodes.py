"""Read and replace what hangs on graph nodes: constant tensors, annotations, arguments, module paths."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import fx, nn
from torch.fx.node import Argument

from fxprune.annotation import META_KEY, WeightAnnotation

COPIED_META = ("nn_module_stack", "stack_trace", META_KEY)
"""What a replacement node takes over from the node it replaces, besides the value `val`."""

VIEWS = frozenset({torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default, torch.ops.aten.reshape.default})
"""Operators whose second argument is the sizes of their result."""


def get_tensor(gm: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    """Return the constant tensor that a `get_attr` node reads.

    Args:
        gm: The graph module that holds the tensor.
        node: A `get_attr` node; its target is a dotted path below `gm`.

    Returns:
        The tensor itself, not a copy: nobody writes into it.

    Raises:
        TypeError: The node is no `get_attr`, or its target is not a tensor.
    """
    value = find_tensor(gm, str(node.target)) if node.op == "get_attr" else None
    if value is None:
        raise TypeError(f"Node '{node.name}' ({node.op} {node.target}) reads no constant tensor")
    return value


def find_tensor(gm: fx.GraphModule, name: str) -> torch.Tensor | None:
    """Return the constant tensor with this dotted name, or None if there is none."""
    value: object = gm
    for part in name.split("."):
        value = getattr(value, part, None)
    return value if isinstance(value, torch.Tensor) else None


def store_tensor(gm: fx.GraphModule, name: str, tensor: torch.Tensor) -> None:
    """Store a constant under a dotted name, making modules on the way; a tensor of that name is replaced."""
    *path, leaf = name.split(".")
    owner: nn.Module = gm
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if leaf in owner._buffers:
        owner._buffers[leaf] = tensor.detach()
        return
    owner.register_buffer(leaf, tensor.detach())


def free_name(gm: fx.GraphModule, name: str) -> str:
    """Return `name`, or `name_1`, `name_2`, ... if something of that name exists below `gm`.

    A name that leads through a tensor ("a.weight.part") is no path; its dots become underscores.
    """
    if find_tensor(gm, name.rpartition(".")[0]) is not None:
        name = name.replace(".", "_")
    candidate, count = name, 0
    while _exists(gm, candidate):
        count += 1
        candidate = f"{name}_{count}"
    return candidate


def _exists(gm: fx.GraphModule, name: str) -> bool:
    value: object = gm
    for part in name.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def add_tensor(gm: fx.GraphModule, name: str, tensor: torch.Tensor, like: fx.Node) -> fx.Node:
    """Store a new constant and return a new `get_attr` node for it, placed beside the `get_attr` node `like`.

    Args:
        gm: The graph module.
        name: The dotted name wanted; a number is appended if it is taken.
        tensor: The value.
        like: A `get_attr` node whose place in the graph and fake mode the new node takes.

    Returns:
        The new node, with `meta["val"]`.
    """
    target = free_name(gm, name)
    store_tensor(gm, target, tensor)
    with gm.graph.inserting_after(like):
        node = gm.graph.create_node("get_attr", target, name=target.replace(".", "_"))
    node.meta["val"] = fake_like(tensor, like.meta["val"])
    return node


def set_tensor(gm: fx.GraphModule, node: fx.Node, tensor: torch.Tensor) -> fx.Node:
    """Give the one user of a `get_attr` node another tensor; a shared constant stays untouched.

    Args:
        gm: The graph module.
        node: A `get_attr` node.
        tensor: The new value, of any shape.

    Returns:
        The node that reads the new tensor: `node` itself (same name) when it had one user and its name no other
        reader, else a new `get_attr` node that the caller wires up.
    """
    readers = [other for other in gm.graph.nodes if other.op == "get_attr" and other.target == node.target]
    if len(readers) > 1 or len(node.users) > 1:
        return add_tensor(gm, str(node.target), tensor, node)
    store_tensor(gm, str(node.target), tensor)
    node.meta["val"] = fake_like(tensor, node.meta["val"])
    return node


def fake_like(tensor: torch.Tensor, fake: object) -> torch.Tensor:
    """Return a FakeTensor with the tensor's shape, strides, dtype and device, in the mode of `fake`."""
    mode = getattr(fake, "fake_mode", None)
    if mode is None:
        raise TypeError(f"expected a FakeTensor in meta['val'], found {type(fake).__name__}")
    with mode:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def annotation_of(node: fx.Node) -> WeightAnnotation | None:
    """Return what is known of the node's weight, or None for a node without an annotation."""
    annotation = node.meta.get(META_KEY)
    return annotation if isinstance(annotation, WeightAnnotation) else None


def copy_meta(old: fx.Node, new: fx.Node) -> None:
    """Copy module path, stack trace, annotation and value from a node to its replacement."""
    for key in (*COPIED_META, "val"):
        if key in old.meta:
            new.meta[key] = old.meta[key]


def module_path(node: fx.Node) -> str:
    """Return the path of the module a node came from, e.g. "layer1.0.conv2"; the node's name if it has none."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    return path or node.name


def is_random(node: fx.Node) -> bool:
    """Return whether a call gives another result every time: dropout in training mode, random numbers.

    Operators that only may drop something (lstm, scaled_dot_product_attention, ...) count if they do.
    """
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    arguments = bind(node)
    switches = [arguments[name] for name in ("train", "training", "dropout_p") if name in arguments]
    return not switches or any(bool(switch) for switch in switches)


def loosen_views(graph: fx.Graph) -> None:
    """Let views copy where they must: they take their input to lie in order, which after a rewrite it may not."""
    for node in graph.nodes:
        if node.target in VIEWS:
            node.target = torch.ops.aten.reshape.default


def bind(node: fx.Node) -> Mapping[str, Argument]:
    """Return the arguments of a `call_function` node by name, defaults filled in.

    Args:
        node: A call of an ATen operator or of a plain Python function.

    Returns:
        Argument name to argument.
    """
    if isinstance(node.target, torch._ops.OpOverload):
        schema = node.target._schema.arguments
        bound: dict[str, Argument] = {item.name: item.default_value for item in schema if item.has_default_value()}
        bound.update(zip((item.name for item in schema), node.args, strict=False))
        bound.update(node.kwargs)
        return bound
    if not callable(node.target):
        raise TypeError(f"Node '{node.name}' calls no function")
    call = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    call.apply_defaults()
    return call.arguments


def copy_graph(gm: fx.GraphModule) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """Return a copy of a graph, and the copy of every node."""
    graph, mapped = fx.Graph(), dict[fx.Node, fx.Node]()
    output = graph.graph_copy(gm.graph, mapped)
    graph.output(output)
    return graph, mapped
