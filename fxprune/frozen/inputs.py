"""The inputs that a program was compiled for: shapes, strides and types of tensors, values of everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten, treespec_dumps, treespec_loads

from fxprune.errors import ArtifactError, UnsupportedError
from fxprune.frozen.tensors import read_shape
from fxprune.frozen.values import read_value, write_value


@dataclass(frozen=True)
class _TensorShape:
    """A tensor without its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def make(self) -> torch.Tensor:
        """Return a tensor of that form; its values are anything."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


@dataclass(frozen=True, eq=False)
class InputForm:
    """The arguments of one call without the values of their tensors.

    Attributes:
        spec: How (args, kwargs) flatten.
        leaves: Forms of tensors, and plain values.
    """

    spec: TreeSpec
    leaves: tuple[object, ...]

    @classmethod
    def of(cls, args: tuple[object, ...], kwargs: Mapping[str, object]) -> InputForm:
        """Return the form of a call's arguments."""
        flat, spec = tree_flatten((args, dict(kwargs)))
        return cls(spec, tuple(_form_of(value) for value in flat))

    def flat(self) -> list[object]:
        """Return flat inputs of that form."""
        return [leaf.make() if isinstance(leaf, _TensorShape) else leaf for leaf in self.leaves]

    def arguments(self) -> tuple[tuple[object, ...], dict[str, object]]:
        """Return (args, kwargs) of that form."""
        return cast("tuple[tuple[object, ...], dict[str, object]]", tree_unflatten(self.flat(), self.spec))

    def write(self) -> dict[str, object]:
        """Return the form as JSON."""
        return {"spec": write_spec(self.spec), "leaves": [_write_leaf(leaf) for leaf in self.leaves]}


def _form_of(value: object) -> object:
    if not isinstance(value, torch.Tensor):
        return value
    return _TensorShape(tuple(value.shape), value.stride(), value.dtype, value.device)


def write_spec(spec: TreeSpec) -> str:
    """Return a tree as text.

    Raises:
        UnsupportedError: It holds a container that torch cannot write.
    """
    try:
        return treespec_dumps(spec)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise UnsupportedError(
            f"The model's inputs or outputs nest as {spec}, which torch cannot write as text: {error}. Use tuples, "
            "lists and dicts, or register the class with torch.export.register_dataclass."
        ) from error


def read_spec(text: object) -> TreeSpec:
    """Return a tree from its text.

    Raises:
        ArtifactError: It holds a container that is not registered here.
    """
    try:
        return treespec_loads(str(text))
    except (NotImplementedError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"The model's inputs or outputs nest in a class that is not registered here: {error}. Import the module "
            "that registers it before you load."
        ) from error


_NO_NODE = fx.Graph().placeholder("input")
"""Whose argument a plain input is, for error messages."""


def _write_leaf(leaf: object) -> object:
    if not isinstance(leaf, _TensorShape):
        return {"value": write_value(leaf, _NO_NODE)}
    words = {"dtype": str(leaf.dtype).removeprefix("torch."), "device": str(leaf.device)}
    return {"shape": list(leaf.shape), "stride": list(leaf.stride), **words}


def read_inputs(written: Mapping[str, object]) -> InputForm:
    """Return the form that `InputForm.write` wrote."""
    leaves = cast("Sequence[Mapping[str, object]]", written["leaves"])
    return InputForm(read_spec(written["spec"]), tuple(_read_leaf(leaf) for leaf in leaves))


def _read_leaf(leaf: Mapping[str, object]) -> object:
    if "value" in leaf:
        return read_value(leaf["value"], {})
    dtype = read_value({"dtype": leaf["dtype"]}, {})
    assert isinstance(dtype, torch.dtype)
    return _TensorShape(read_shape(leaf["shape"]), read_shape(leaf["stride"]), dtype, torch.device(str(leaf["device"])))
