"""Runs of views as one permutation of axes.

Reshapes, transposes, squeezed and added axes, and selections from an axis of size 1 only say where the cells of a
tensor stand. Whatever a run of them is written as, it is carried out once on the numbers of the cells; where these grow
evenly along every axis, or along the parts of one, it is `reshape(permute(reshape(x, sizes), axes), shape)`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import fx

from fxprune.nodes import VIEWS

_aten = torch.ops.aten

_RESHAPE, _PERMUTE = _aten.reshape.default, _aten.permute.default

VIEW_OPERATORS = VIEWS | {
    _aten.alias.default,
    _aten.expand.default,
    _aten.flatten.using_ints,
    _aten.permute.default,
    _aten.select.int,
    _aten.slice.Tensor,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.t.default,
    _aten.transpose.int,
    _aten.unflatten.int,
    _aten.unsqueeze.default,
}
"""Operators whose result holds cells of their first argument, moved at most."""

_LARGEST = 2**26
"""Cells of the largest tensor whose views are read: their numbers take eight bytes each."""

_Call = tuple[Callable[..., torch.Tensor], tuple[object, ...], tuple[tuple[str, object], ...]]


@dataclass(frozen=True)
class View:
    """A view of all cells of a tensor: `reshape(permute(reshape(x, sizes), axes), shape)`.

    Attributes:
        sizes: Sizes of the axes that are permuted; none is 1.
        axes: These axes in their new order.
        shape: Sizes of the result.
    """

    sizes: tuple[int, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    def keeps_last(self, size: int) -> bool:
        """Whether the last axis, of so many cells, stays the last one whole."""
        ends = self.sizes[-1:] == self.shape[-1:] == (size,)
        return ends and self.axes[-1] == len(self.sizes) - 1

    def with_last(self, size: int) -> View:
        """Return the same view of a tensor whose last axis, which stays the last one whole, has another size."""
        axes = self.axes[:-1] if size == 1 else self.axes
        return View((*self.sizes[:-1], *_without_ones([size])), axes, (*self.shape[:-1], size))

    def count_calls(self, shape: Sequence[int]) -> int:
        """Return how many calls make the view of a tensor of this shape."""
        return len(self._calls(tuple(shape)))

    def copies(self, shape: Sequence[int]) -> bool:
        """Whether the view of a tensor of this shape that lies in order is a copy: axes that were moved are merged."""
        return [target for target, _ in self._calls(tuple(shape))][-2:] == [_PERMUTE, _RESHAPE]

    def insert(self, graph: fx.Graph, x: fx.Node) -> fx.Node:
        """Write the calls at the graph's point of insertion; returns the result, `x` itself if nothing changes.

        Args:
            graph: The graph.
            x: The tensor that is viewed.
        """
        for target, argument in self._calls(tuple(x.meta["val"].shape)):
            value = target(x.meta["val"], argument)
            x = graph.call_function(target, (x, argument))
            x.meta["val"] = value
        return x

    def _calls(self, shape: tuple[int, ...]) -> list[tuple[torch._ops.OpOverload, list[int]]]:
        if self.axes == tuple(range(len(self.axes))):
            return [] if self.shape == shape else [(_RESHAPE, list(self.shape))]
        moved = tuple(self.sizes[axis] for axis in self.axes)
        start = shape if _without_ones(shape) == self.sizes else self.sizes
        end = (1,) * start.count(1) + moved
        if _without_ones(self.shape) == moved:
            end = self.shape
            start = start if len(start) == len(end) else _spread(self.sizes, end)
        before = [] if start == shape else [(_RESHAPE, list(start))]
        after = [] if end == self.shape else [(_RESHAPE, list(self.shape))]
        return [*before, (_PERMUTE, _match(start, end, self.axes)), *after]


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _spread(sizes: Sequence[int], like: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes with axes of size 1 where another shape has them."""
    rest = iter(sizes)
    return tuple(1 if size == 1 else next(rest) for size in like)


def _match(start: Sequence[int], end: Sequence[int], axes: Sequence[int]) -> list[int]:
    """Return the axis of `start` that each one of `end` is; the others than those of size 1 go by `axes`."""
    ones = (place for place, size in enumerate(start) if size == 1)
    longer = [place for place, size in enumerate(start) if size != 1]
    order = iter(axes)
    return [next(ones) if size == 1 else longer[next(order)] for size in end]


def is_view(node: fx.Node) -> bool:
    """Whether a node has all cells of its first argument, and nothing else."""
    if node.op != "call_function" or node.target not in VIEW_OPERATORS or len(node.all_input_nodes) != 1:
        return False
    before, after = node.all_input_nodes[0].meta.get("val"), node.meta.get("val")
    return isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor) and before.numel() == after.numel() > 0


def find_run(node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """Return what a node is a view of, and the views between, in order; the node itself and none if it is no view."""
    run: list[fx.Node] = []
    while is_view(node):
        run.append(node)
        (node,) = node.all_input_nodes
    return node, run[::-1]


def read_run(source: fx.Node, run: Sequence[fx.Node], then: View | None = None) -> View | None:
    """Return a run of views as one view of its source, or None if it is no permutation of axes.

    Args:
        source: What is viewed.
        run: The views in order; may be empty.
        then: A view of the run's result that is taken as well.
    """
    shape = tuple(source.meta["val"].shape)
    if not 0 < prod(shape) <= _LARGEST:
        return None
    result = tuple((run[-1] if run else source).meta["val"].shape)
    last = [] if then is None else [(target, (tuple(sizes),), ()) for target, sizes in then._calls(result)]
    return _read(shape, (*map(_call_of, run), *last))


def _call_of(node: fx.Node) -> _Call:
    target = _RESHAPE if node.target in VIEWS else node.target
    assert callable(target)
    keywords = tuple((name, _freeze(value)) for name, value in node.kwargs.items())
    return target, tuple(_freeze(value) for value in node.args[1:]), keywords


def _freeze(value: object) -> object:
    """Return an argument that can be hashed."""
    return tuple(_freeze(one) for one in value) if isinstance(value, list | tuple) else value


@functools.lru_cache(maxsize=256)
def _read(shape: tuple[int, ...], calls: tuple[_Call, ...]) -> View | None:
    numbers = torch.arange(prod(shape))
    cells = numbers.reshape(shape)
    for target, arguments, keywords in calls:
        cells = target(cells, *arguments, **dict(keywords))
    parts = [_split(cells[(0,) * axis + (slice(None),) + (0,) * (cells.ndim - axis - 1)]) for axis in range(cells.ndim)]
    pairs = [pair for axis in parts for pair in axis]
    sizes, steps = [size for size, _ in pairs], [step for _, step in pairs]
    ends = sum((size - 1) * step for size, step in pairs)
    if prod(sizes) != len(numbers) or ends != len(numbers) - 1 or min(steps, default=1) < 1:
        return None
    if not torch.equal(cells.reshape(sizes), numbers.as_strided(sizes, steps)):
        return None
    order = sorted(range(len(steps)), key=lambda axis: -steps[axis])
    axes = tuple(order.index(axis) for axis in range(len(order)))
    return View(tuple(sizes[axis] for axis in order), axes, tuple(cells.shape))


def _split(cells: torch.Tensor) -> list[tuple[int, int]]:
    """Return the parts, (size, step), of an axis whose cell numbers grow evenly along each, the longest step first."""
    size = len(cells)
    if size == 1:
        return []
    steps = cells.diff()
    uneven = (steps != steps[0]).nonzero()
    part = int(uneven[0]) + 1 if len(uneven) else size
    if size % part:
        return []
    return [*_split(cells[::part]), (part, int(steps[0]))]
