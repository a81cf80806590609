"""Neighbouring kernels that only read planned buffers, as one node of the lowered graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx, nn

from fxprune.codegen.build import Library
from fxprune.codegen.chain import Chain
from fxprune.lowering.modules import KernelModule
from fxprune.lowering.pool import PoolModule


class ChainModule(nn.Module):
    """Kernels that run one after another by one call.

    Args of forward: tensors of the graph that are awaited; what the kernels read of them lies in planned buffers.

    Attributes:
        names: Names of the kernels' nodes.
        output: The output buffer of the last kernel, viewed as its node's output.
    """

    def __init__(self, library: Library, names: Sequence[str], members: Sequence[KernelModule | PoolModule]) -> None:
        """Bind the kernels.

        Args:
            library: What they were built into.
            names: Names of their nodes.
            members: The kernels in order.
        """
        super().__init__()
        self.names, self.output = tuple(names), members[-1].output
        self._chain = Chain(library, [member.bound for member in members])

    def extra_repr(self) -> str:
        """Return the kernels' names."""
        return ", ".join(self.names)

    def forward(self, *_awaited: torch.Tensor) -> torch.Tensor:
        """Run the kernels; the result lies in the planned buffer and is overwritten by the next call."""
        self._chain.run()
        return self.output


def chain_kernels(gm: fx.GraphModule, library: Library) -> None:
    """Replace every run of neighbouring static kernels by one node.

    A kernel whose result is read from outside its run ends the run.

    Args:
        gm: The lowered graph, all kernels bound; it is changed.
        library: The kernels' library.
    """
    for number, nodes in enumerate(list(_find_runs(gm))):
        members = [gm.get_submodule(str(node.target)) for node in nodes]
        inside = set(nodes)
        awaited = dict.fromkeys(arg for node in nodes for arg in node.all_input_nodes if arg not in inside)
        name = f"chain_{number}"
        gm.add_submodule(name, ChainModule(library, [str(node.target) for node in nodes], members))  # type: ignore[arg-type]
        with gm.graph.inserting_after(nodes[-1]):
            chained = gm.graph.call_module(name, tuple(awaited))
        chained.meta = dict(nodes[-1].meta)
        nodes[-1].replace_all_uses_with(chained)
        for node in reversed(nodes):
            gm.graph.erase_node(node)
            gm.delete_submodule(str(node.target))


def _find_runs(gm: fx.GraphModule) -> Iterator[list[fx.Node]]:
    """Yield the runs of at least two kernels."""
    run: list[fx.Node] = []
    position = {node: index for index, node in enumerate(gm.graph.nodes)}
    for node in gm.graph.nodes:
        if not _is_static(gm, node):
            yield from _cut(run, position)
            run = []
        else:
            run.append(node)
    yield from _cut(run, position)


def _is_static(gm: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    module = gm.get_submodule(str(node.target))
    return isinstance(module, KernelModule | PoolModule) and module.is_static


def _cut(run: list[fx.Node], position: dict[fx.Node, int]) -> Iterator[list[fx.Node]]:
    """Cut a run behind every kernel that a node after the run reads."""
    part: list[fx.Node] = []
    for node in run:
        part.append(node)
        if any(position[user] > position[run[-1]] for user in node.users) or node is run[-1]:
            if len(part) > 1:
                yield part
            part = []
