"""Neighbouring kernels that only read planned buffers, as one node of the lowered graph."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import cast

import torch
from torch import fx, nn

from fxprune.codegen.build import Library
from fxprune.codegen.chain import Chain
from fxprune.lowering.modules import KernelModule, UnaryModule


class ChainModule(nn.Module):
    """Kernels that run one after another by one call.

    Args of forward: tensors of the graph that are awaited; what the kernels read of them lies in planned buffers.

    Attributes:
        names: Names of the kernels' nodes.
        output: The output buffer of the last kernel, viewed as its node's output.
    """

    def __init__(self, library: Library, names: Sequence[str], members: Sequence[KernelModule | UnaryModule]) -> None:
        """Bind the kernels.

        Args:
            library: What they were built into.
            names: Names of their nodes.
            members: The kernels in order.
        """
        super().__init__()
        self.names, self.output = tuple(names), members[-1].output
        self._members = tuple(members)
        self._chain = Chain(library, [member.bound for member in members])

    def extra_repr(self) -> str:
        """Return the kernels' names."""
        return ", ".join(self.names)

    def forward(self, *_awaited: torch.Tensor) -> torch.Tensor:
        """Run the kernels; the result lies in the planned buffer and is overwritten by the next call."""
        self._chain.run()
        return self.output

    def run_timed(self) -> list[tuple[KernelModule | UnaryModule, float]]:
        """Run the kernels one by one; returns each with its seconds."""
        times = []
        for member in self._members:
            start = time.perf_counter()
            member.bound.run()
            times.append((member, time.perf_counter() - start))
        return times


class HeldModule(nn.Module):
    """The result of a kernel, or a view of it, for what reads it.

    Args of forward: the node that runs the kernel, which is awaited.

    Attributes:
        output: The output buffer, viewed as its readers see it.
    """

    def __init__(self, output: torch.Tensor) -> None:
        """Hold a result.

        Args:
            output: The output buffer, viewed as its readers see it.
        """
        super().__init__()
        self.output = output

    def forward(self, _awaited: torch.Tensor) -> torch.Tensor:
        """Return the result, which lies in the planned buffer and is overwritten by the next call."""
        return self.output


def chain_kernels(gm: fx.GraphModule, library: Library) -> None:
    """Replace every run of at least two neighbouring static kernels by one node.

    Args:
        gm: The lowered graph, all kernels bound; it is changed.
        library: The kernels' library.
    """
    runs = itertools.groupby(list(gm.graph.nodes), lambda node: _is_static(gm, node))
    found = [list(nodes) for is_static, nodes in runs if is_static]
    for number, nodes in enumerate(nodes for nodes in found if len(nodes) > 1):
        _replace_run(gm, nodes, library, f"chain_{number}")


def _is_static(gm: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    module = gm.get_submodule(str(node.target))
    return isinstance(module, KernelModule | UnaryModule) and module.is_static


def _replace_run(gm: fx.GraphModule, nodes: Sequence[fx.Node], library: Library, name: str) -> None:
    members = [cast("KernelModule | UnaryModule", gm.get_submodule(str(node.target))) for node in nodes]
    names, inside = [str(node.target) for node in nodes], set(nodes)
    awaited = dict.fromkeys(arg for node in nodes for arg in node.all_input_nodes if arg not in inside)
    gm.add_submodule(name, ChainModule(library, names, members))
    with gm.graph.inserting_after(nodes[-1]):
        chained = gm.graph.call_module(name, tuple(awaited))
    chained.meta = dict(nodes[-1].meta)
    for node, member in zip(nodes, members, strict=True):
        result = chained
        if node is not nodes[-1] and not inside.issuperset(node.users):
            gm.set_submodule(str(node.target), HeldModule(member.output))
            with gm.graph.inserting_after(chained):
                result = gm.graph.call_module(str(node.target), (chained,))
            result.meta = dict(node.meta)
        node.replace_all_uses_with(result, lambda user: user not in inside)
    for node in reversed(nodes):
        gm.graph.erase_node(node)
    gm.delete_all_unused_submodules()
