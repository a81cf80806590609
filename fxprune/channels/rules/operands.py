"""The tensor operands of a pointwise operator, seen with the rank of its result."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fxprune.channels.facts import Facts
from fxprune.channels.grid import IntArray, Shape
from fxprune.channels.rules.base import is_constant


@dataclass(frozen=True, eq=False)
class Operand:
    """One tensor operand.

    Attributes:
        node: Its node.
        shape: Its shape with leading ones.
        ids: Its ids with leading ones; None for a constant.
    """

    node: fx.Node
    shape: Shape
    ids: IntArray | None

    def strip(self, cells: IntArray) -> IntArray:
        """Return an arrangement without the leading ones that the operand itself does not have."""
        rank = self.node.meta["val"].ndim
        return cells.reshape(cells.shape[cells.ndim - rank :])


def find_operands(node: fx.Node, facts: Facts) -> list[Operand]:
    """Return the tensor operands of a pointwise node, each once, in order."""
    rank = node.meta["val"].ndim
    found: list[Operand] = []
    for source in node.all_input_nodes:
        shape = tuple(source.meta["val"].shape)
        lead = (1,) * (rank - len(shape))
        ids = None if is_constant(source) else facts.of(source).ids
        found.append(Operand(source, lead + shape, None if ids is None else ids.reshape(lead + ids.shape)))
    return found
