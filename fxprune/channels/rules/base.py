"""What a rule answers for one operator, and the rule for operators that nobody has described."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import fx

from fxprune.channels.facts import Cells, Facts
from fxprune.channels.rewriter import Rewriter
from fxprune.nodes import get_tensor

_LAST = ("aten.linear", "aten.lstm.", "aten.gru.", "aten.rnn_tanh.", "aten.rnn_relu.")
"""Operators that read channels on the last axis."""


class Rule:
    """The rule of an operator that is not known: it reads everything, all it returns varies, nothing is cut.

    A rule of a known operator answers the three questions anew.
    """

    def forward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Give the node's result its ids and their values, and tie what stays or goes together."""
        set_opaque(node, facts)

    def backward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Mark the ids of the inputs that the used part of the result depends on."""
        pin_inputs(node, facts)

    def rewrite(self, node: fx.Node, rewriter: Rewriter) -> None:
        """Emit the node for cut inputs."""
        rewriter.copy_full(node)


def set_opaque(node: fx.Node, facts: Facts) -> None:
    """Give every tensor that a node returns one varying id."""
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        facts.cells[node] = opaque_cells(value, facts)
    elif isinstance(value, Sequence):
        facts.cells[node] = [opaque_cells(item, facts) for item in value if isinstance(item, torch.Tensor)]


def opaque_cells(value: torch.Tensor, facts: Facts) -> Cells:
    """Return cells with one id for a whole tensor."""
    return Cells(tuple(value.shape), facts.new_ids((1,) * value.ndim))


def pin_inputs(node: fx.Node, facts: Facts) -> None:
    """Mark everything that a node reads as used and not to be cut."""
    name = node.target.__name__ if callable(node.target) else str(node.target)
    for source in node.all_input_nodes:
        for cells in list_cells(source, facts):
            facts.pin(cells.ids, f"{node.name} ({name.removesuffix('.default')}) reads all channels of {source.name}")


def list_cells(node: fx.Node, facts: Facts) -> list[Cells]:
    """Return the cells of all tensors of a node; none for constants."""
    cells = facts.cells.get(node, [])
    return [cells] if isinstance(cells, Cells) else cells


def is_constant(argument: object) -> bool:
    """Return whether an argument is a node that reads a constant."""
    return isinstance(argument, fx.Node) and argument.op == "get_attr"


def is_activation(argument: object) -> bool:
    """Return whether an argument is a node that returns one tensor and is no constant."""
    return (
        isinstance(argument, fx.Node)
        and argument.op != "get_attr"
        and isinstance(argument.meta.get("val"), torch.Tensor)
    )


def constant_of(gm: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    """Return the tensor of a constant node in float64, or as it is if it is not floating."""
    tensor = get_tensor(gm, node).detach()
    return tensor.double() if tensor.is_floating_point() else tensor


class InputRule(Rule):
    """Inputs vary; a channel of an input can be unused."""

    def forward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Give one id to every index of the axis that the first layer contracts."""
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return
        axis = _channel_axis(node, value.ndim)
        if axis is None:
            set_opaque(node, facts)
            return
        grid = tuple(size if other == axis else 1 for other, size in enumerate(value.shape))
        facts.cells[node] = Cells(tuple(value.shape), facts.new_ids(grid))
        facts.given = np.concatenate([facts.given, facts.of(node).ids.reshape(-1)])

    def backward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Nothing lies before an input."""

    def rewrite(self, node: fx.Node, rewriter: Rewriter) -> None:
        """Keep the signature."""
        rewriter.copy_full(node)


def _channel_axis(node: fx.Node, rank: int) -> int | None:
    """Return the last axis for what a linear layer reads, 1 for images, None where nothing can be said."""
    targets = {str(user.target) for user in node.users}
    if any(target.startswith(_LAST) for target in targets):
        return rank - 1
    return 1 if rank >= 4 or (rank == 3 and any("conv" in target for target in targets)) else None


class OutputRule(Rule):
    """The model's outputs: all used, and given back whole."""

    def forward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """An output has no result of its own."""

    def backward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Everything is used; known channels are written in at the end."""
        for source in node.all_input_nodes:
            for cells in list_cells(source, facts):
                facts.use(cells.ids)

    def rewrite(self, node: fx.Node, rewriter: Rewriter) -> None:
        """Expand every output to its original channels."""
        rewriter.copy_full(node)
