"""Make one view of each run of views, and move views out from between layers and what they are fused with.

Rewrite:
    view(... view(x))            ->  reshape(permute(reshape(x, sizes), axes), shape), or what of it is needed
    clone(x)                     ->  x; also between views that are no copy without it, or one
    view(... linear(view(x)))    ->  view(... view'(linear(x))), the first view keeps the last axis
    view(linear(view'(x)))       ->  linear(view(view'(x))), the outer view keeps the last axis, the inner one does not
    Tokens of a linear layer are computed one by one, so their order and the axes they lie along do not matter to it.

Needs:
    runs that are a permutation of axes; only views read a linear layer when those in front of it move behind it; views
    that move in front of one cost no more calls there than those it reads; a clone reads a tensor that lies in order,
    or is between views, and no view of it is an output, which must not share memory with an input.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from fxprune.errors import PostconditionError
from fxprune.layer import Layer, find_layer
from fxprune.nodes import loosen_views
from fxprune.operators import fused_linear
from fxprune.passes.base import Pass, PassResult
from fxprune.views import View, find_run, is_view, read_run

logger = logging.getLogger(__name__)

_COPIES = frozenset({torch.ops.aten.clone.default, torch.ops.aten.contiguous.default})

_Rewrite = Callable[[], object]


@dataclass(frozen=True)
class MergeViews(Pass):
    """Make views few, and neighbours of layers what they compute with."""

    preserves_output: ClassVar[bool] = True

    def requires(self, gm: fx.GraphModule) -> None:
        """Nothing: any verified graph will do."""

    def apply(self, gm: fx.GraphModule) -> PassResult:
        """Rewrite until nothing is left to do: what one view made room for, another may use."""
        modified = False
        while rewrites := _apply_all(gm.graph):
            logger.debug("%d views were merged or moved", rewrites)
            modified = True
        if modified:
            loosen_views(gm.graph)
        return PassResult(modified)

    def ensures(self, gm: fx.GraphModule) -> None:
        """No view is left that could be merged or moved."""
        for node in gm.graph.nodes:
            if _find_rewrite(gm.graph, node) is not None:
                raise PostconditionError(f"A view at '{node.name}' could be merged or moved and was not.")


def _apply_all(graph: fx.Graph) -> int:
    """Rewrite every node once; returns how many were."""
    count = 0
    for node in list(graph.nodes):
        rewrite = _find_rewrite(graph, node) if node.users else None
        if rewrite is not None:
            rewrite()
            count += 1
    graph.eliminate_dead_code()
    return count


def _find_rewrite(graph: fx.Graph, node: fx.Node) -> _Rewrite | None:
    """Return what makes the views at a node fewer, or None."""
    if node.op != "call_function":
        return None
    if node.target in _COPIES:
        return _find_copy(node)
    if is_view(node):
        return None if all(is_view(user) for user in node.users) else _find_merge(graph, node)
    layer = find_layer(node)
    if layer is None or layer.kind != "linear" or node.target is fused_linear:
        return None
    return _find_sink(graph, layer) or _find_lift(graph, layer)


def _find_copy(node: fx.Node) -> _Rewrite | None:
    (source, *_) = node.all_input_nodes
    if not source.meta["val"].is_contiguous() or not node.meta["val"].is_contiguous() or _is_returned(node):
        return None
    return functools.partial(node.replace_all_uses_with, source)


def _is_returned(node: fx.Node) -> bool:
    """Whether a node or a view of it is an output."""
    return any(
        user.op == "output" or ((is_view(user) or user.target in _COPIES) and _is_returned(user)) for user in node.users
    )


def _find_merge(graph: fx.Graph, node: fx.Node) -> _Rewrite | None:
    """Return the shortest form of the longest part of a run that has a shorter one."""
    source, run = find_run(node)
    for start in range(len(run)):
        first = source if start == 0 else run[start - 1]
        view = read_run(first, run[start:])
        if view is not None and view.count_calls(first.meta["val"].shape) < len(run) - start:
            return functools.partial(_replace, graph, node, first, view)
    return _find_merge_past_copy(graph, node, source, run) if source.target in _COPIES else None


def _find_merge_past_copy(graph: fx.Graph, node: fx.Node, copy: fx.Node, run: list[fx.Node]) -> _Rewrite | None:
    """Return the view of what was copied, if that is no copy, or the only one."""
    (copied, *_) = copy.all_input_nodes
    source, before = find_run(copied)
    view = read_run(source, [*before, copy, *run])
    if view is None or _is_returned(node):
        return None
    alone = all(len(one.users) == 1 for one in (copy, *run[:-1]))
    if view.copies(source.meta["val"].shape) and not alone:
        return None
    return functools.partial(_replace, graph, node, source, view)


def _replace(graph: fx.Graph, node: fx.Node, source: fx.Node, view: View) -> None:
    with graph.inserting_before(node):
        node.replace_all_uses_with(view.insert(graph, source))


def _find_sink(graph: fx.Graph, layer: Layer) -> _Rewrite | None:
    """Move the views in front of a linear layer behind it, to those that read it."""
    node = layer.node
    source, run = find_run(layer.input)
    if not run or source.meta["val"].ndim < 2 or not all(is_view(user) for user in node.users):
        return None
    view = read_run(source, run)
    out, columns = layer.weight_shape
    if view is None or not view.keeps_last(columns) or source.meta["val"].shape[-1] != columns:
        return None
    return functools.partial(_sink, graph, layer, source, view.with_last(out))


def _sink(graph: fx.Graph, layer: Layer, source: fx.Node, view: View) -> None:
    node, users = layer.node, list(layer.node.users)
    _set_input(layer, source)
    with graph.inserting_before(node.next):
        moved = view.insert(graph, node)
    for user in users:
        user.replace_input_with(node, moved)


def _find_lift(graph: fx.Graph, layer: Layer) -> _Rewrite | None:
    """Move the views that read a linear layer in front of it, to those that mix its last axis with others."""
    node = layer.node
    out, columns = layer.weight_shape
    source, run = find_run(layer.input)
    behind = _follow(node)
    for length in range(len(behind), 0, -1):
        view = read_run(node, behind[:length])
        if view is None or not view.keeps_last(out) or len(view.shape) < 2:
            continue
        in_front = view.with_last(columns)
        if not run or not _merges(source, run, in_front):
            return None
        return functools.partial(_lift, graph, layer, in_front, behind[length - 1])
    return None


def _lift(graph: fx.Graph, layer: Layer, view: View, end: fx.Node) -> None:
    with graph.inserting_before(layer.node):
        _set_input(layer, view.insert(graph, layer.input))
    end.replace_all_uses_with(layer.node)


def _follow(node: fx.Node) -> list[fx.Node]:
    """Return the views that read a node one after another, as long as each is read by the next one alone."""
    found: list[fx.Node] = []
    while len(node.users) == 1 and is_view(next(iter(node.users))):
        node = next(iter(node.users))
        found.append(node)
    return found


def _merges(source: fx.Node, run: list[fx.Node], view: View) -> bool:
    """Whether a run of views and one more are no more calls than the run alone."""
    merged = read_run(source, run, view)
    return merged is not None and merged.count_calls(source.meta["val"].shape) <= len(run)


def _set_input(layer: Layer, x: fx.Node) -> None:
    """Let a linear layer read another tensor."""
    layer.node.replace_input_with(layer.input, x)
    value = x.meta["val"]
    layer.node.meta["val"] = value.new_empty((*value.shape[:-1], layer.out_channels))
