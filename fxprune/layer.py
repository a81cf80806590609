"""One view of every node that owns a weight, whatever operator it is written as."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import fx
from torch.fx.node import Argument

from fxprune.nodes import bind, module_path
from fxprune.operators import fused_convolution, fused_linear

__all__ = ["Layer", "find_layer", "module_path", "name_bias"]

_aten = torch.ops.aten
_CONVOLUTIONS = frozenset(
    {
        _aten.conv1d.default,
        _aten.conv2d.default,
        _aten.conv3d.default,
        _aten.conv1d.padding,
        _aten.conv2d.padding,
        _aten.conv3d.padding,
        _aten.convolution.default,
        fused_convolution,
    }
)
_TRANSPOSED = frozenset({_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.conv_transpose3d.input})
_LINEAR = frozenset({_aten.linear.default, fused_linear})


@dataclass(frozen=True)
class Layer:
    """A convolution, transposed convolution or linear node with its arguments in one form.

    Attributes:
        node: The node.
        kind: "conv", "conv_transpose" or "linear".
        dims: Spatial axes, 1 to 3; 0 for linear.
        input: Node of the input, [N, I, *image] (N may be missing) or [..., I].
        weight: `get_attr` node, [O, I / groups, *kernel], [I, O / groups, *kernel] if transposed, or [O, I].
        bias: `get_attr` node, [O], or None.
        residual: Node with exactly the output's shape, or None.
        stride: One step a spatial axis.
        padding: (low, high) a spatial axis; "same" is resolved, for even kernels it is not symmetric.
        dilation: One step a spatial axis.
        output_padding: One size a spatial axis; zeros unless transposed.
        groups: Convolution groups; 1 for linear.
        activation: A name of `operators.ACTIVATIONS`, or None.
        activation_args: The activation's numbers.
    """

    node: fx.Node
    kind: str
    dims: int
    input: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    residual: fx.Node | None
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    activation: str | None
    activation_args: tuple[float, ...]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The weight's sizes."""
        return tuple(self.weight.meta["val"].shape)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The output's sizes."""
        return tuple(self.node.meta["val"].shape)

    @property
    def out_channels(self) -> int:
        """Rows of the 2-D view, O."""
        shape = self.weight_shape
        return shape[1] * self.groups if self.kind == "conv_transpose" else shape[0]

    @property
    def positions(self) -> int:
        """How often each cell of the weight is used: pixels of the whole batch (input pixels if transposed)."""
        if self.kind == "conv_transpose":
            return int(self.input.meta["val"].numel()) // max(1, self.weight_shape[0])
        return math.prod(self.output_shape) // max(1, self.out_channels)

    @property
    def title(self) -> str:
        """The operator in a few words, e.g. "conv2d 3x3 s2 g1"."""
        if self.kind == "linear":
            return "linear"
        name = f"conv{self.dims}d" if self.kind == "conv" else f"conv_transpose{self.dims}d"
        kernel = "x".join(str(size) for size in self.weight_shape[2:])
        stride = "x".join(str(step) for step in dict.fromkeys(self.stride))
        return f"{name} {kernel} s{stride} g{self.groups}"

    @property
    def macs(self) -> int:
        """Multiply-adds of the dense layer at its real shapes."""
        return self.positions * math.prod(self.weight_shape)


def find_layer(node: fx.Node) -> Layer | None:
    """Return the layer view of a node, or None if it is no layer with constant weight and bias.

    Args:
        node: Any node of a captured graph; weights have `meta["val"]`.

    Returns:
        The view, or None.
    """
    if node.op != "call_function":
        return None
    target = node.target
    if target not in _CONVOLUTIONS and target not in _TRANSPOSED and target not in _LINEAR:
        return None
    arguments = bind(node)
    weight, bias = arguments["weight"], arguments.get("bias")
    if not _is_constant(weight) or not (bias is None or _is_constant(bias)):
        return None
    transposed = target in _TRANSPOSED or bool(arguments.get("transposed", False))
    kind = "linear" if target in _LINEAR else "conv_transpose" if transposed else "conv"
    if kind == "linear" and cast("fx.Node", weight).meta["val"].ndim != 2:
        return None
    return _view(node, kind, arguments)


def _is_constant(argument: Argument) -> bool:
    return isinstance(argument, fx.Node) and argument.op == "get_attr"


def _view(node: fx.Node, kind: str, arguments: Mapping[str, Argument]) -> Layer:
    weight = cast("fx.Node", arguments["weight"])
    dims = 0 if kind == "linear" else weight.meta["val"].ndim - 2
    kernel = tuple(weight.meta["val"].shape)[2:]
    dilation = _per_axis(arguments.get("dilation", 1), dims)
    return Layer(
        node=node,
        kind=kind,
        dims=dims,
        input=cast("fx.Node", arguments["input"] if "input" in arguments else arguments["x"]),
        weight=weight,
        bias=cast("fx.Node | None", arguments.get("bias")),
        residual=cast("fx.Node | None", arguments.get("residual")),
        stride=_per_axis(arguments.get("stride", 1), dims),
        padding=_resolve_padding(arguments.get("padding", 0), kernel, dilation),
        dilation=dilation,
        output_padding=_per_axis(arguments.get("output_padding", 0), dims),
        groups=cast("int", arguments.get("groups", 1)),
        activation=cast("str | None", arguments.get("activation")),
        activation_args=tuple(cast("tuple[float, ...]", arguments.get("activation_args", ()))),
    )


def _per_axis(value: Argument, dims: int) -> tuple[int, ...]:
    """Spread one number, or a list of one, over all spatial axes."""
    values = tuple(cast("Sequence[int]", value)) if isinstance(value, Sequence) else (cast("int", value),)
    return values * dims if len(values) == 1 else values


def _resolve_padding(
    padding: Argument, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """Return (low, high) a spatial axis for numbers, pairs, "valid" and "same" (the odd zero goes to the high end)."""
    if padding == "same":
        totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if isinstance(padding, Sequence) and padding and isinstance(padding[0], Sequence):
        return tuple((int(low), int(high)) for low, high in cast("Sequence[tuple[int, int]]", padding))
    return tuple((size, size) for size in _per_axis(padding, len(kernel)))


def name_bias(weight_name: str) -> str:
    """Return the name of the bias beside a weight: "layer1.conv.weight" has "layer1.conv.bias"."""
    path, _, leaf = weight_name.rpartition(".")
    bias = "bias" if leaf == "weight" else f"{leaf}_bias"
    return f"{path}.{bias}" if path else bias
