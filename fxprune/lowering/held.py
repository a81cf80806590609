"""Views of planned buffers: a buffer stays where it is, so what torch sees of it is made once and not at every call."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx, nn

from fxprune.lowering.chain import ChainModule, HeldModule
from fxprune.lowering.modules import KernelModule, UnaryModule
from fxprune.views import VIEW_OPERATORS


def hold_views(gm: fx.GraphModule) -> None:
    """Replace views of what kernels compute by the views themselves.

    Args:
        gm: The lowered graph, all kernels bound; it is changed.
    """
    held: dict[fx.Node, torch.Tensor] = {}
    for node in gm.graph.nodes:
        found = _find_view(gm, node, held)
        if found is not None:
            held[node] = found
    for number, node in enumerate(list(held)):
        if node.op == "call_function" and not held.keys() >= node.users.keys():
            name = f"held_{number}"
            gm.add_submodule(name, HeldModule(held[node]))
            with gm.graph.inserting_before(node):
                new = gm.graph.call_module(name, (_producer(node),))
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new, lambda user: user not in held)
    for node in reversed(list(held)):
        if node.op == "call_function" and not node.users:
            gm.graph.erase_node(node)


def _find_view(gm: fx.GraphModule, node: fx.Node, held: Mapping[fx.Node, torch.Tensor]) -> torch.Tensor | None:
    """Return what a node always is: the output of a kernel, or a view of one; None for any other node."""
    if node.op == "call_module":
        return _output(gm.get_submodule(str(node.target)))
    source = node.args[0] if node.args else None
    if node.target not in VIEW_OPERATORS or not isinstance(source, fx.Node) or source not in held:
        return None
    assert callable(node.target)
    view: torch.Tensor = node.target(held[source], *node.args[1:], **node.kwargs)
    return view if view.untyped_storage().data_ptr() == held[source].untyped_storage().data_ptr() else None


def _output(module: nn.Module) -> torch.Tensor | None:
    return module.output if isinstance(module, KernelModule | UnaryModule | ChainModule | HeldModule) else None


def _producer(node: fx.Node) -> fx.Node:
    while node.op == "call_function":
        (node,) = node.all_input_nodes
    return node
