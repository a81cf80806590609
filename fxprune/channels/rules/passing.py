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
from fxprune.channels.grid import BoolArray, IntArray, all_cells, arrange
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
            made = [Cells(tuple(results[0].shape), _fit(ids, self.mixed(node), results[0]))]
            if _has_places(results):
                places = facts.new_ids(cells.grid)
                facts.tie(places, cells.ids)
                made.append(Cells(tuple(results[1].shape), _fit(places, self.mixed(node), results[1])))
            made += [opaque_cells(value, facts) for value in results[len(made) :]]
        facts.cells[node] = made[0] if isinstance(node.meta["val"], torch.Tensor) else made

    def backward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Pass use on; a result that does not depend on the input needs none."""
        if not self._applies(node, facts):
            pin_inputs(node, facts)
            return
        source = facts.of(_source(node))
        facts.use(source.ids.reshape(-1), _find_needed(node, facts))

    def rewrite(self, node: fx.Node, rewriter: Rewriter) -> None:
        """Emit the operator on the channels that are left."""
        source = _source(node)
        if not self._applies(node, rewriter.facts) or rewriter.is_whole(source):
            rewriter.copy_full(node)
            return
        cells = rewriter.facts.of(source)
        held = rewriter.held(source)
        needed = _find_needed(node, rewriter.facts)
        if held is None and not bool(needed.any()):
            _drop(node, rewriter)
        elif held is not None and bool(np.isin(np.flatnonzero(needed), held).all()):
            self._emit(node, rewriter, rewriter.made_node(source), held)
        else:  # a value that was known is not known any more: its channel comes back
            kept = arrange(rewriter.keep[cells.ids] | needed.reshape(cells.grid))
            wanted = all_cells(cells.grid) if kept is None else kept
            self._emit(node, rewriter, rewriter.fetch(source, wanted), wanted)

    def _applies(self, node: fx.Node, facts: Facts) -> bool:
        source = _source(node)
        if not is_activation(source) or source not in facts.cells:
            return False
        rank = len(facts.of(source).shape)
        mixed = {axis % rank for axis in self.mixed(node)} if rank else set()
        axes = facts.of(source).axes
        return not mixed & set(axes) and (axes in ((), (1,)) or not self._has_vectors(node))

    def _has_vectors(self, node: fx.Node) -> bool:
        arguments = bind(node)
        found = [arguments[name] for name in self.parameters]
        return any(isinstance(item, fx.Node) and item.meta["val"].numel() > 1 for item in found)

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
                line = held.reshape(-1) if tensor.numel() > 1 else np.zeros(1, dtype=np.int64)
                cut = tensor.detach()[torch.from_numpy(line)]
                arguments[name] = rewriter.constant(str(parameter.target), cut, (line.tobytes(),))
        source_name = next(name for name, value in bind(node).items() if value is _source(node))
        new = rewriter.emit_like(node, {**arguments, source_name: x})
        results = _results(node)
        if isinstance(node.meta["val"], torch.Tensor):
            rewriter.put(node, new, _fit(held, self.mixed(node), results[0]))
            return
        made = cast("list[Cells]", rewriter.facts.cells[node])
        known = 2 if _has_places(results) else 1
        items: list[IntArray | None] = [_fit(held, self.mixed(node), value) for value in results[:known]]
        items += [np.arange(item.ids.size).reshape(item.grid) for item in made[known:]]
        rewriter.put_items(node, new, items)


def _source(node: fx.Node) -> fx.Node:
    return cast("fx.Node", node.args[0])


def _results(node: fx.Node) -> list[torch.Tensor]:
    value = node.meta["val"]
    return [value] if isinstance(value, torch.Tensor) else list(value)


def _has_places(results: Sequence[torch.Tensor]) -> bool:
    """Return whether the second result says where the first was found, as that of a maximum does."""
    return len(results) > 1 and not results[1].is_floating_point()


def _find_needed(node: fx.Node, facts: Facts) -> BoolArray:
    """Return which cells of the results are used and vary, flattened."""
    made = facts.cells[node]
    if isinstance(made, Cells):
        ids = made.ids.reshape(-1)
        return np.asarray(facts.used[ids] & facts.varies(ids))
    known = made[:2] if _has_places(_results(node)) else made[:1]
    lines = [cells.ids.reshape(-1) for cells in known]
    return np.asarray(np.any([facts.used[line] & facts.varies(line) for line in lines], axis=0))


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
