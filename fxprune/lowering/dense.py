"""Dense layers on torch: prepacked oneDNN convolutions with their epilogue fused, where torch offers them."""

from __future__ import annotations

import torch
from torch import nn

from fxprune.layer import Layer
from fxprune.operators import apply_activation, fused_convolution, fused_linear

_ONEDNN_NAMES = {None: "none", "relu": "relu", "sigmoid": "sigmoid", "silu": "swish", "hardswish": "hardswish"}
"""Activations to oneDNN's names; hardtanh and gelu have arguments besides."""


class DenseLayer(nn.Module):
    """A layer run by torch's own operator, activations channels-last.

    Args of forward: x as the layer's input; residual with the output's shape, or None.
    """

    def __init__(self, layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Take the layer's constants.

        Args:
            layer: The layer; not transposed.
            weight: Its weight, masked.
            bias: [O] or None.
        """
        super().__init__()
        self.constants: tuple[torch.Tensor, torch.Tensor | None] = (weight, bias)
        self.geometry = (layer.stride, layer.padding, layer.dilation)
        self.groups = layer.groups
        self.epilogue = (layer.activation, layer.activation_args)
        self.kind = layer.kind

    def move(self, device: torch.device) -> None:
        """Bring the constants to a device, the weight of a 2-D convolution channels-last."""
        weight, bias = self.constants
        order = torch.channels_last if weight.ndim == 4 else torch.contiguous_format
        self.constants = (weight.to(device, memory_format=order), None if bias is None else bias.to(device))

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Compute activation(layer(x) + residual)."""
        if self.kind == "linear":
            return fused_linear(x, *self.constants, residual, *self.epilogue)
        stride, padding, dilation = self.geometry
        return fused_convolution(x, *self.constants, residual, stride, padding, dilation, self.groups, *self.epilogue)


class PackedConvolution(nn.Module):
    """A 2-D convolution prepacked for oneDNN, with bias, residual and activation in the same call."""

    def __init__(self, layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Reorder the weight once for the layer's input shape.

        Args:
            layer: A 2-D convolution that `find_packed_obstacle` accepts.
            weight: Its weight, masked.
            bias: [O] or None.
        """
        super().__init__()
        self.geometry = ([low for low, _ in layer.padding], list(layer.stride), list(layer.dilation), layer.groups)
        self.name, self.scalars, self.algorithm = _onednn_activation(layer)
        size = list(layer.input.meta["val"].shape)
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            weight.contiguous(memory_format=torch.channels_last), *self.geometry, size
        )
        self.packed, self.bias = packed, bias
        self.epilogue = (layer.activation, layer.activation_args)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Compute activation(convolution(x) + residual), channels-last."""
        x = x.contiguous(memory_format=torch.channels_last)
        end = (self.name, self.scalars, self.algorithm)
        if residual is None:
            result: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
                x, self.packed, self.bias, *self.geometry, *end
            )
            return result
        other = residual.contiguous(memory_format=torch.channels_last)
        unary: tuple[str | None, list[float], str | None] = (
            ("relu", [], None) if self.name == "relu" else (None, [], None)
        )
        summed: torch.Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
            x, other, self.packed, self.bias, *self.geometry, "add", 1.0, *unary
        )
        return summed if self.name == "relu" else apply_activation(summed, *self.epilogue)


class PackedLinear(nn.Module):
    """A linear layer prepacked for oneDNN, with bias, residual and activation in the same call."""

    def __init__(self, layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Reorder the weight once for the layer's number of tokens.

        Args:
            layer: A linear layer that `find_packed_obstacle` accepts.
            weight: Its weight, masked.
            bias: [O] or None.
        """
        super().__init__()
        self.name, self.scalars, self.algorithm = _onednn_activation(layer)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), layer.positions)
        self.bias = bias
        self.epilogue = (layer.activation, layer.activation_args)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Compute activation(linear(x) + residual)."""
        if residual is None:
            result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
                x, self.packed, self.bias, self.name, self.scalars, self.algorithm
            )
            return result
        summed: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, residual.contiguous(), self.packed, self.bias, "add"
        )
        return apply_activation(summed, *self.epilogue)


def _onednn_activation(layer: Layer) -> tuple[str, list[float], str]:
    if layer.activation == "hardtanh":
        return "hardtanh", list(layer.activation_args), ""
    if layer.activation in ("gelu", "gelu_tanh"):
        return "gelu", [], "tanh" if layer.activation == "gelu_tanh" else "none"
    return _ONEDNN_NAMES[layer.activation], [], ""


def find_packed_obstacle(layer: Layer) -> str | None:
    """Return why a layer cannot be prepacked for oneDNN, or None."""
    if layer.kind != "linear" and (layer.kind != "conv" or layer.dims != 2 or len(layer.output_shape) != 4):
        return "only 2-D convolutions of batches and linear layers are prepacked"
    if any(low != high for low, high in layer.padding):
        return "the padding is not symmetric"
    fake = layer.input.meta["val"]
    if fake.dtype != torch.float32 or fake.device.type != "cpu":
        return "oneDNN's prepacked convolution takes float32 on the CPU"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this torch has no oneDNN"
    return None


def build_dense(layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    """Return the fastest dense form of a layer that torch offers."""
    if find_packed_obstacle(layer) is None:
        return (PackedLinear if layer.kind == "linear" else PackedConvolution)(layer, weight, bias)
    return DenseLayer(layer, weight, bias)
