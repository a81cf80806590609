"""Operators that treat every channel alike and by itself: pooling, resizing, padding, batch normalisation, means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import fx
from torch.fx.node import Argument

from fxprune.channels.facts import Cells, Facts
from fxprune.channels.grid import IntArray, all_cells, arrange
from fxprune.channels.rewriter import Rewriter
from fxprune.channels.rules.base import Rule, is_activation, opaque_cells, pin_inputs
from fxprune.nodes import bind, get_tensor

Values = Callable[[fx.GraphModule, fx.Node, Facts, IntArray, IntArray], None]
"""Writes the values of output ids from those of input ids; both flattened, cell by cell."""
Axes = Callable[[fx.Node], tuple[int, ...]]
"""The axes that an operator mixes."""


@dataclass(frozen=True)
class PassingRule(Rule):
    """Channel by channel; a channel is used if its result is.

    Attributes:
        values: What becomes of known values.
        mixed: The axes within which elements meet; ids on them make the operator read everything.
        parameters: Names of constant arguments with one number a channel.
    """

    values: Values
    mixed: Axes
    parameters: tuple[str, ...] = ()

    def forward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Give every channel a new id with its new value."""
        results = _results(node)
        source = _source(node)
        if not self._applies(node, facts):
            made = [opaque_cells(value, facts) for value in results]
        else:
            cells = facts.of(source)
            ids = facts.new_ids(cells.grid)
            facts.tie(ids, cells.ids)
            self.values(gm, node, facts, cells.ids.reshape(-1), ids.reshape(-1))
            made = [Cells(tuple(value.shape), _fit(ids, self.mixed(node), value)) for value in results[:2]]
            made += [opaque_cells(value, facts) for value in results[2:]]
        facts.cells[node] = made[0] if isinstance(node.meta["val"], torch.Tensor) else made

    def backward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Pass use on; a result that does not depend on the input needs none."""
        if not self._applies(node, facts):
            pin_inputs(node, facts)
            return
        source = facts.of(_source(node))
        made = facts.cells[node]
        ids = (made if isinstance(made, Cells) else made[0]).ids.reshape(-1)
        needed = facts.used[ids] & facts.varies(ids)
        facts.use(source.ids.reshape(-1), needed)

    def rewrite(self, node: fx.Node, rewriter: Rewriter) -> None:
        """Emit the operator on the channels that are left."""
        source = _source(node)
        if not self._applies(node, rewriter.facts) or rewriter.is_whole(source):
            rewriter.copy_full(node)
            return
        made = rewriter.facts.cells[node]
        first = made if isinstance(made, Cells) else made[0]
        cells = rewriter.facts.of(source)
        held = rewriter.held(source)
        needed = rewriter.facts.used[first.ids] & rewriter.facts.varies(first.ids)
        if held is None and not bool(needed.any()):
            _drop(node, rewriter)
        elif held is not None and bool(np.isin(np.flatnonzero(needed), held).all()):
            self._emit(node, rewriter, rewriter.made_node(source), held)
        else:  # a value that was known is not known any more: its channel comes back
            kept = arrange(rewriter.keep[first.ids].reshape(cells.grid))
            wanted = all_cells(cells.grid) if kept is None else kept
            self._emit(node, rewriter, rewriter.fetch(source, wanted), wanted)

    def _applies(self, node: fx.Node, facts: Facts) -> bool:
        source = _source(node)
        if not is_activation(source) or source not in facts.cells:
            return False
        rank = len(facts.of(source).shape)
        mixed = {axis % rank for axis in self.mixed(node)} if rank else set()
        axes = facts.of(source).axes
        return not mixed & set(axes) and (not self.parameters or axes in ((), (1,)))

    def _emit(self, node: fx.Node, rewriter: Rewriter, x: fx.Node, held: IntArray) -> None:
        arguments: dict[str, Argument] = {
            name: rewriter.argument(value) if name not in self.parameters else value
            for name, value in bind(node).items()
            if value is not _source(node)
        }
        for name in self.parameters:
            parameter = arguments[name]
            if isinstance(parameter, fx.Node):
                tensor = get_tensor(rewriter.gm, parameter)
                line = held.reshape(-1)
                cut = tensor.detach()[torch.from_numpy(line)]
                arguments[name] = rewriter.constant(str(parameter.target), cut, (line.tobytes(),))
        source_name = next(name for name, value in bind(node).items() if value is _source(node))
        new = rewriter.emit_like(node, {**arguments, source_name: x})
        results = _results(node)
        if isinstance(node.meta["val"], torch.Tensor):
            rewriter.put(node, new, _fit(held, self.mixed(node), results[0]))
            return
        made = cast("list[Cells]", rewriter.facts.cells[node])
        items: list[IntArray | None] = [_fit(held, self.mixed(node), value) for value in results[:2]]
        items += [np.arange(item.ids.size).reshape(item.grid) for item in made[2:]]
        rewriter.put_items(node, new, items)


def _source(node: fx.Node) -> fx.Node:
    return cast("fx.Node", node.args[0])


def _results(node: fx.Node) -> list[torch.Tensor]:
    value = node.meta["val"]
    return [value] if isinstance(value, torch.Tensor) else list(value)


def _drop(node: fx.Node, rewriter: Rewriter) -> None:
    made = rewriter.facts.cells[node]
    if isinstance(made, Cells):
        rewriter.drop(node)
    else:
        rewriter.put_items(node, None, [None] * len(made))


def _fit(array: IntArray, mixed: Sequence[int], value: torch.Tensor) -> IntArray:
    """Return an array over the input's grid for a result that has lost the mixed axes."""
    if array.ndim == value.ndim:
        return array
    gone = {axis % array.ndim for axis in mixed}
    return array.reshape([size for axis, size in enumerate(array.shape) if axis not in gone])
