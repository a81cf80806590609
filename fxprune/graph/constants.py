"""Evaluate what does not depend on the input, so that every weight is one named constant.

Prune hooks and parametrizations multiply a mask into a weight at every call; an analysis of the graph needs the
product itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

import torch
from torch import fx
from torch.fx.node import Argument, map_arg

from fxprune.graph.program import NAMES_KEY, ModelNames
from fxprune.nodes import bind, find_tensor, free_name, get_tensor, is_random, module_path, store_tensor

_aten = torch.ops.aten

_PARTS_OF_ONE_TENSOR = (
    re.compile(r"^(?P<path>(?:.*\.)?)parametrizations\.(?P<leaf>[^.]+)\..*$"),  # torch.nn.utils.parametrize
    re.compile(r"^(?P<path>(?:.*\.)?)(?P<leaf>[^.]+)_(?:orig|mask|u|v|g)$"),  # nn.utils.prune, spectral and weight norm
)
_ROLES = ("weight", "bias")


def rewrite_products(gm: fx.GraphModule) -> None:
    """Write `addmm(b, x, w.T)` and `mm(x, w.T)` as `linear(x, w, b)`, so that a weight keeps its [O, I] shape.

    Programs decomposed to core ATen hold the former. Other products are left alone.
    """
    constant = _find_constant_nodes(gm)
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or node.target not in (_aten.addmm.default, _aten.mm.default):
            continue
        *bias, x, product = node.args
        weight = _find_transposed(product)
        if weight not in constant or node.kwargs or (bias and not _is_bias(bias[0])):
            continue
        with gm.graph.inserting_before(node):
            linear = gm.graph.create_node("call_function", _aten.linear.default, (x, weight, *bias), name="linear")
        linear.meta.update(node.meta)
        node.replace_all_uses_with(linear)
        gm.graph.erase_node(node)


def _find_transposed(product: Argument) -> fx.Node | None:
    """Return w of w.T, or None."""
    if not isinstance(product, fx.Node) or not product.args:
        return None
    axes = product.args[1:]
    swaps = (
        product.target is _aten.t.default
        or (product.target is _aten.permute.default and list(cast("list[int]", axes[0])) in ([1, 0], [-1, -2]))
        or (product.target is _aten.transpose.int and {cast("int", axis) % 2 for axis in axes} == {0, 1})
    )
    return cast("fx.Node", product.args[0]) if swaps else None


def _is_bias(argument: Argument) -> bool:
    return isinstance(argument, fx.Node) and argument.meta["val"].ndim == 1


def fold_constants(gm: fx.GraphModule) -> None:
    """Replace every input-independent result that the rest of the graph reads by one `get_attr` of its value.

    Equal arithmetic gives one constant, so a pruned module that is called twice still has one weight. Random operators
    are not folded. The constant is named after the tensor whose parts it was computed from ("conv.weight_orig" and
    "conv.weight_mask" make "conv.weight"), else after its place ("<module>.weight"), else after its node.

    Args:
        gm: An imported graph with shapes; changed in place. Dead nodes are left for `tidy`.
    """
    constant = _find_constant_nodes(gm)
    evaluator = _Evaluator(gm)
    made: dict[str, fx.Node] = {}
    for node in list(gm.graph.nodes):
        if node not in constant or node.op == "get_attr" or all(user in constant for user in node.users):
            continue
        value = evaluator.evaluate(node)
        if not isinstance(value, torch.Tensor):
            continue
        key = evaluator.key(node)
        if key not in made:
            made[key] = _make_constant(gm, node, value, constant)
        _record_sources(gm, evaluator.sources(node), str(made[key].target))
        node.replace_all_uses_with(made[key], delete_user_cb=lambda user: user not in constant)
    _name_wholes(_names(gm))


def mask_constants(gm: fx.GraphModule, masks: Mapping[str, torch.Tensor]) -> None:
    """Multiply masks into tensors that only constant arithmetic reads, before that is evaluated.

    Args:
        gm: An imported graph; its own tensors are replaced, the user's are not written to.
        masks: Bool masks by parameter name. Those that do not fit are left to `annotate`, and so are parts of a tensor
            (of a prune hook or a parametrization).
    """
    constant = _find_constant_nodes(gm)
    names = _names(gm)
    for name, mask in masks.items():
        target = names.aliases.get(name)
        own = [node for node in gm.graph.nodes if node.op == "get_attr" and node.target == target]
        readers = [user for node in own for user in node.users]
        if target is None or not readers or _whole_of(target) is not None or not constant.issuperset(readers):
            continue
        tensor = find_tensor(gm, target)
        if tensor is not None and tensor.shape == mask.shape:
            store_tensor(gm, target, torch.where(mask.to(tensor.device), tensor, torch.zeros_like(tensor)))
            names.masked.add(target)


def _name_wholes(names: ModelNames) -> None:
    """Let a mask call a tensor by its usual name also where only its parts have names ("conv.weight_orig")."""
    for name, canonical in list(names.aliases.items()):
        whole, known = _whole_of(name), _whole_of(canonical)
        if whole is not None and known is not None:
            names.aliases.setdefault(whole, known)


def _find_constant_nodes(gm: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes whose value is the same at every call."""
    constant: set[fx.Node] = set()
    for node in gm.graph.nodes:
        stable = node.op == "get_attr" or (node.op == "call_function" and not is_random(node))
        if stable and all(source in constant for source in node.all_input_nodes):
            constant.add(node)
    return constant


class _Evaluator:
    """Computes constant nodes on demand and remembers them by what they compute."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._values: dict[fx.Node, Argument] = {}
        self._keys: dict[fx.Node, str] = {}
        self._numbers: dict[str, str] = {}
        self._sources: dict[fx.Node, set[str]] = {}

    def key(self, node: fx.Node) -> str:
        """Return something equal for nodes that compute the same from the same constants."""
        if node not in self._keys:
            arguments = map_arg((node.args, dict(node.kwargs)), self.key)
            text = f"{node.target}({arguments})"
            self._keys[node] = self._numbers.setdefault(text, f"%{len(self._numbers)}")  # short, whatever it is made of
        return self._keys[node]

    def sources(self, node: fx.Node) -> set[str]:
        """Return the names of the tensors that a node is computed from."""
        if node not in self._sources:
            inner = set().union(*(self.sources(source) for source in node.all_input_nodes))
            self._sources[node] = {str(node.target)} if node.op == "get_attr" else inner
        return self._sources[node]

    def evaluate(self, node: fx.Node) -> Argument:
        """Return the node's value."""
        if node not in self._values:
            self._values[node] = get_tensor(self._gm, node) if node.op == "get_attr" else self._call(node)
        return self._values[node]

    def _call(self, node: fx.Node) -> Argument:
        args, kwargs = map_arg((node.args, dict(node.kwargs)), self.evaluate)
        assert callable(node.target)
        with torch.no_grad():
            return cast("Argument", node.target(*args, **kwargs))


def _make_constant(gm: fx.GraphModule, node: fx.Node, value: torch.Tensor, constant: set[fx.Node]) -> fx.Node:
    sources = _Evaluator(gm).sources(node)
    name = free_name(gm, _name_from_sources(gm, sources) or _name_from_users(node, constant) or f"folded.{node.name}")
    store_tensor(gm, name, value)
    _names(gm).aliases.setdefault(name, name)
    first = next(other for other in gm.graph.nodes if other.op != "placeholder")
    with gm.graph.inserting_before(first):
        made = gm.graph.create_node("get_attr", name, name=name.replace(".", "_"))
    made.meta["val"] = node.meta["val"]
    return made


def _name_from_sources(gm: fx.GraphModule, sources: set[str]) -> str | None:
    """Return the one tensor that all sources are parts of, or the one source (a number will be appended to it)."""
    wholes = {_whole_of(name) for name in sources}
    whole = wholes.pop() if len(wholes) == 1 else None
    if whole is not None and find_tensor(gm, whole) is None:
        return whole
    return next(iter(sources)) if len(sources) == 1 else None


def _whole_of(name: str) -> str | None:
    matches = (pattern.match(name) for pattern in _PARTS_OF_ONE_TENSOR)
    return next((f"{match['path']}{match['leaf']}" for match in matches if match), None)


def _name_from_users(node: fx.Node, constant: set[fx.Node]) -> str | None:
    """Return "<module>.weight" or "<module>.bias" if the node is one to a node of that module."""
    for user in node.users:
        if user in constant or not isinstance(user.target, torch._ops.OpOverload):
            continue
        arguments = bind(user)
        role = next((role for role in _ROLES if arguments.get(role) is node), None)
        if role is not None:
            path = module_path(user)
            return role if path == user.name else f"{path}.{role}"
    return None


def _record_sources(gm: fx.GraphModule, sources: set[str], name: str) -> None:
    for source in sources:
        _names(gm).folded.setdefault(source, set()).add(name)


def _names(gm: fx.GraphModule) -> ModelNames:
    names: Mapping[str, object] = gm.meta
    return cast("ModelNames", names[NAMES_KEY])
