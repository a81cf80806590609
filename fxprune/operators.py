"""The fused operators that `fuse_epilogue` writes: a convolution or linear layer with its epilogue.

They are plain functions run by torch, so that a graph with them stays executable; codegen replaces them by kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

_ACTIVATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "relu": torch.relu,
    "hardtanh": F.hardtanh,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
}
ACTIVATIONS = frozenset(_ACTIVATIONS)
"""The names that `apply_activation` knows."""

_CONVOLUTIONS: dict[int, Callable[..., torch.Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def apply_activation(x: torch.Tensor, name: str | None, args: tuple[float, ...] = ()) -> torch.Tensor:
    """Apply an activation by name.

    Args:
        x: Any shape.
        name: One of `ACTIVATIONS`, or None for the identity.
        args: Lower and upper bound for "hardtanh" (relu6 is hardtanh with 0 and 6), empty for the others.

    Returns:
        A tensor of the same shape.
    """
    return x if name is None else _ACTIVATIONS[name](x, *args)


def fused_convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    groups: int,
    activation: str | None,
    activation_args: tuple[float, ...],
) -> torch.Tensor:
    """Compute activation(convolution(x) + bias + residual).

    Args:
        x: Input [N, I, *image] (1, 2 or 3 axes of the image; N may be missing).
        weight: [O, I / groups, *kernel].
        bias: [O] or None.
        residual: Exactly the output's shape, or None.
        stride: One step a spatial axis.
        padding: (low, high) zeros a spatial axis.
        dilation: One step a spatial axis.
        groups: Convolution groups.
        activation: Name of the activation, or None.
        activation_args: Its numbers.

    Returns:
        Output [N, O, *image].
    """
    symmetric = all(low == high for low, high in padding)
    if not symmetric:
        x = F.pad(x, [size for pair in reversed(padding) for size in pair])
    amount = [low for low, _ in padding] if symmetric else 0
    convolution = _CONVOLUTIONS[len(stride)]
    y = convolution(x, weight, bias, list(stride), amount, list(dilation), groups)
    return apply_activation(y if residual is None else y + residual, activation, activation_args)


def fused_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: str | None,
    activation_args: tuple[float, ...],
) -> torch.Tensor:
    """Compute activation(linear(x) + bias + residual).

    Args:
        x: Input [..., I].
        weight: [O, I].
        bias: [O] or None.
        residual: Exactly the output's shape, or None.
        activation: Name of the activation, or None.
        activation_args: Its numbers.

    Returns:
        Output [..., O].
    """
    y = F.linear(x, weight, bias)
    return apply_activation(y if residual is None else y + residual, activation, activation_args)
