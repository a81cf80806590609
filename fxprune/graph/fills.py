"""Tensors that take only their shape from the input: new_zeros, zeros_like and their kind are constants here."""

from __future__ import annotations

from typing import cast

import torch
from torch import fx

from fxprune.nodes import bind

_aten = torch.ops.aten
_NUMBERS: dict[object, float] = {
    _aten.new_zeros.default: 0.0,
    _aten.zeros_like.default: 0.0,
    _aten.new_ones.default: 1.0,
    _aten.ones_like.default: 1.0,
}
_FULL = frozenset({_aten.new_full.default, _aten.full_like.default})
_OVERWRITES = frozenset({_aten.fill.Scalar})


def rewrite_fills(gm: fx.GraphModule) -> None:
    """Write tensors filled with one number as `full`, which reads nothing.

    An attention mask that a model builds with `x.new_zeros(...)` is then evaluated once, as all input-independent
    arithmetic.

    Args:
        gm: An imported graph with shapes; changed in place. Dead nodes are left for `tidy`.
    """
    for node in list(gm.graph.nodes):
        number = _find_number(node)
        if number is None:
            continue
        value = node.meta["val"]
        with gm.graph.inserting_before(node):
            options = {"dtype": value.dtype, "device": value.device}
            full = gm.graph.create_node("call_function", _aten.full.default, (list(value.shape), number), options)
        full.meta.update(node.meta)
        node.replace_all_uses_with(full)
        gm.graph.erase_node(node)


def _find_number(node: fx.Node) -> float | None:
    """Return what a node fills its whole result with; None if it does something else."""
    if node.op != "call_function":
        return None
    if node.target in _NUMBERS:
        return _NUMBERS[node.target]
    arguments = bind(node) if node.target in _FULL | _OVERWRITES else {}
    number = arguments.get("fill_value", arguments.get("value"))
    return cast("float", number) if isinstance(number, int | float) else None
