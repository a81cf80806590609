"""The graph of the cut model while it grows: its nodes, what each holds, its constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import fx
from torch.fx.node import Argument, Target

from fxprune.channels.facts import Facts
from fxprune.channels.grid import BoolArray, IntArray, all_cells, arrange
from fxprune.channels.record import LayerCut
from fxprune.nodes import copy_meta, free_name, store_tensor


@dataclass(frozen=True, eq=False)
class _Wanted:
    """A constant of the new graph: its name in the old one, and what it is now."""

    name: str
    tensor: torch.Tensor
    node: fx.Node


@dataclass
class Emitter:
    """The new graph while it grows.

    Attributes:
        gm: The graph module; its constants are read, its old graph is left alone.
        facts: The analysis.
        keep: Which ids stay in their tensors.
        graph: The new graph.
        nodes: Old node to the node that stands for it; None if nothing of it is left.
        record: What was cut from every layer.
        parts: Nodes that stand for the results of an old node that returned several tensors, if they are not one call.
        cells: Old node to the arrangement in which it is held; a list for nodes that return several tensors.
    """

    gm: fx.GraphModule
    facts: Facts
    keep: BoolArray
    graph: fx.Graph = field(default_factory=fx.Graph)
    nodes: dict[fx.Node, fx.Node | None] = field(default_factory=dict)
    cells: dict[fx.Node, IntArray | list[IntArray | None]] = field(default_factory=dict)
    record: list[LayerCut] = field(default_factory=list)
    parts: dict[fx.Node, list[fx.Node | None]] = field(default_factory=dict)
    _constants: dict[tuple[object, ...], _Wanted] = field(default_factory=dict)

    # what stands in the new graph

    def put(self, old: fx.Node, new: fx.Node, cells: IntArray) -> None:
        """Say which node holds a tensor now, and in which arrangement."""
        assert self.suffices(old, cells), f"{old}: the cut lost channels that are needed"
        self.nodes[old], self.cells[old] = new, cells

    def put_items(self, old: fx.Node, new: fx.Node | None, items: list[IntArray | None]) -> None:
        """Say the same of a node that returns several tensors."""
        self.nodes[old], self.cells[old] = new, items

    def put_parts(self, old: fx.Node, parts: list[fx.Node | None], items: list[IntArray | None]) -> None:
        """Say the same where every result is a node of its own."""
        self.nodes[old], self.cells[old], self.parts[old] = None, items, parts

    def drop(self, old: fx.Node) -> None:
        """Say that nothing of a tensor is left."""
        assert self.suffices(old, np.empty(0, dtype=np.int64)), f"{old}: the cut lost channels that are needed"
        self.nodes[old] = None

    def suffices(self, old: fx.Node, cells: IntArray) -> bool:
        """Return whether an arrangement of a tensor holds all channels that vary and are used."""
        ids = self.facts.of(old).ids.reshape(-1)
        needed = self.facts.varies(ids) & self.facts.used[ids]
        needed[cells.reshape(-1)] = False
        return not bool(needed.any())

    def made_node(self, old: fx.Node) -> fx.Node:
        """Return the node that stands for an old one."""
        new = self.nodes[old]
        assert new is not None, f"{old} is gone"
        return new

    def made_items(self, old: fx.Node) -> list[IntArray | None]:
        """Return the arrangements of a node that returns several tensors."""
        return cast("list[IntArray | None]", self.cells[old])

    def held(self, old: fx.Node) -> IntArray | None:
        """Return the arrangement of a tensor; None if nothing of it is left."""
        return None if self.nodes[old] is None else cast("IntArray", self.cells[old])

    def is_whole(self, old: fx.Node) -> bool:
        """Return whether a tensor is as it was."""
        cells = self.held(old)
        return cells is not None and np.array_equal(cells, all_cells(self.facts.of(old).grid))

    def kept_cells(self, old: fx.Node) -> IntArray | None:
        """Return the arrangement that the plan asks for; None if nothing that varies is left.

        All cells stay where the kept ones fill no box.
        """
        cells = self.facts.of(old)
        kept = self.keep[cells.ids]
        if not bool((kept & self.facts.varies(cells.ids)).any()):
            return None
        found = arrange(kept)
        return all_cells(cells.grid) if found is None else found

    # emitting

    def emit(
        self,
        target: Target,
        args: tuple[Argument, ...],
        like: fx.Node,
        kwargs: Mapping[str, Argument] | None = None,
        *,
        named: bool = True,
    ) -> fx.Node:
        """Add a call whose arguments are nodes of the new graph; it takes name and meta of `like`."""
        name = like.name if named else None
        new = self.graph.create_node("call_function", target, args, dict(kwargs or {}), name=name)
        if named:
            copy_meta(like, new)
        elif "nn_module_stack" in like.meta:
            new.meta["nn_module_stack"] = like.meta["nn_module_stack"]
        return new

    def emit_like(self, old: fx.Node, arguments: Mapping[str, Argument]) -> fx.Node:
        """Add a call of the operator of an old node, with all its arguments by name."""
        assert isinstance(old.target, torch._ops.OpOverload)
        schema = old.target._schema.arguments
        args = tuple(arguments[item.name] for item in schema if not item.kwarg_only)
        kwargs = {item.name: arguments[item.name] for item in schema if item.kwarg_only}
        return self.emit(old.target, args, old, kwargs)

    def constant(self, name: str, tensor: torch.Tensor, cut: tuple[object, ...]) -> fx.Node:
        """Return a node that reads a constant of the new graph.

        Args:
            name: Its name in the old graph, or the name wanted.
            tensor: Its value now.
            cut: What was done to it; equal cuts of one constant share one tensor.
        """
        key = (name, *cut)
        if key not in self._constants:
            node = self.graph.create_node("get_attr", name, name=name.replace(".", "_"))
            self._constants[key] = _Wanted(name, tensor, node)
        return self._constants[key].node

    def store_constants(self) -> None:
        """Store the constants; a cut constant keeps its name unless several cuts of it are needed."""
        taken: dict[str, torch.Tensor] = {}
        for wanted in self._constants.values():
            name = next((other for other, tensor in taken.items() if tensor is wanted.tensor), wanted.name)
            if taken.get(name, wanted.tensor) is not wanted.tensor:
                name = free_name(self.gm, name)
            taken[name] = wanted.tensor
            store_tensor(self.gm, name, wanted.tensor)
            wanted.node.target = name
