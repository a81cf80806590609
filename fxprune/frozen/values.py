"""Arguments and targets of graph nodes as JSON and back; reading looks names up and runs nothing."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import fx
from torch.fx.node import Argument, Target

from fxprune.errors import ArtifactError, UnsupportedError
from fxprune.operators import fused_convolution, fused_linear

_FUNCTIONS: dict[str, Callable[..., object]] = {
    "operator.getitem": operator.getitem,
    "fxprune.fused_convolution": fused_convolution,
    "fxprune.fused_linear": fused_linear,
}
"""The plain functions that a graph calls, by the name under which they are stored."""

_TORCH_NAMES = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}
"""Values that are named constants of torch."""


def write_target(node: fx.Node) -> str:
    """Return the name of what a node calls: an ATen overload such as "aten::add.Tensor", or a known function.

    Raises:
        UnsupportedError: It is neither.
    """
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return f"{target._schema.name}.{target._overloadname}"
    for name, function in _FUNCTIONS.items():
        if target is function:
            return name
    raise UnsupportedError(
        f"Node '{node.name}' calls {target}, which is no operator of torch; a model that calls it cannot be saved."
    )


def read_target(name: str) -> Target:
    """Return what a name stands for.

    Raises:
        ArtifactError: No operator of that name is registered.
    """
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    found: object = torch.ops
    for part, kind in ((namespace, torch._ops._OpNamespace), (packet, torch._ops.OpOverloadPacket)):
        found = getattr(found, part, None) if part.isidentifier() else None
        found = found if isinstance(found, kind) else None
    found = getattr(found, overload, None) if overload else None
    if not isinstance(found, torch._ops.OpOverload):
        raise ArtifactError(
            f"The model calls the operator {name!r}, which is not registered here. Import the package that brings it "
            "(torchvision::... is torchvision's) before you load, or install the torch version the file was saved with."
        )
    return found


def write_value(value: object, node: fx.Node) -> object:
    """Return an argument as JSON.

    Args:
        value: Nodes, numbers, text, None, constants of torch, and lists, tuples, dicts and slices of them.
        node: Whose argument it is, for the error.

    Raises:
        UnsupportedError: The value is of another type.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, complex):
        return {"complex": [write_value(value.real, node), write_value(value.imag, node)]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for key, kind in _TORCH_NAMES.items():
        if isinstance(value, kind):
            return {key: str(value).removeprefix("torch.")}
    return _write_many(value, node)


def _write_many(value: object, node: fx.Node) -> object:
    if isinstance(value, tuple):
        return {"tuple": [write_value(item, node) for item in value]}
    if isinstance(value, list):
        return [write_value(item, node) for item in value]
    if isinstance(value, slice):
        return {"slice": [write_value(item, node) for item in (value.start, value.stop, value.step)]}
    if isinstance(value, Mapping):
        return {"dict": [[str(key), write_value(item, node)] for key, item in value.items()]}
    raise UnsupportedError(
        f"Node '{node.name}' has an argument of type {type(value).__name__}, for which the file has no form; a model "
        "with it cannot be saved."
    )


def read_value(value: object, nodes: Mapping[str, fx.Node]) -> Argument:
    """Return an argument from its JSON.

    Args:
        value: What `write_value` returned.
        nodes: The nodes made so far, by name.

    Raises:
        ArtifactError: The JSON is not of that form.
    """
    if isinstance(value, list):
        return [read_value(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value  # type: ignore[return-value]  # JSON's plain values are arguments
    if len(value) != 1:
        raise ArtifactError(f"An argument in the stored graph is {value!r}; the file is damaged. Save the model again.")
    ((key, inner),) = value.items()
    return _read_tagged(str(key), inner, nodes)


def _read_tagged(key: str, inner: object, nodes: Mapping[str, fx.Node]) -> Argument:
    if key == "node":
        return nodes[str(inner)]
    if key == "float":
        return float(str(inner))
    if key == "device":
        return torch.device(str(inner))
    if key in _TORCH_NAMES:
        found: object = getattr(torch, str(inner), None)
        if not isinstance(found, _TORCH_NAMES[key]):
            raise ArtifactError(f"torch has no {key} {inner!r}. Load with the torch version the file was saved with.")
        return cast("Argument", found)
    return _read_many(key, inner, nodes)


def _read_many(key: str, inner: object, nodes: Mapping[str, fx.Node]) -> Argument:
    if not isinstance(inner, list):
        raise ArtifactError(f"A {key!r} in the stored graph is {inner!r}; the file is damaged. Save the model again.")
    if key == "dict":
        return {str(name): read_value(item, nodes) for name, item in inner}
    items = [read_value(item, nodes) for item in inner]
    if key == "tuple":
        return tuple(items)
    if key == "slice":
        return slice(*items)
    if key == "complex":
        return complex(*items)  # type: ignore[arg-type]  # two numbers
    raise ArtifactError(f"The stored graph holds a {key!r}, which this version does not know.")
