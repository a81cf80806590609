"""The fused operators against torch's own modules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxprune.operators import ACTIVATIONS, apply_activation, fused_convolution, fused_linear

MODULES: dict[str, tuple[nn.Module, tuple[float, ...]]] = {
    "relu": (nn.ReLU(), ()),
    "hardtanh": (nn.ReLU6(), (0.0, 6.0)),
    "silu": (nn.SiLU(), ()),
    "hardswish": (nn.Hardswish(), ()),
    "gelu": (nn.GELU(), ()),
    "gelu_tanh": (nn.GELU(approximate="tanh"), ()),
    "sigmoid": (nn.Sigmoid(), ()),
}


def test_every_activation_is_tested() -> None:
    assert set(MODULES) == ACTIVATIONS


@pytest.mark.parametrize("name", sorted(MODULES))
def test_activation_equals_the_module(name: str) -> None:
    module, args = MODULES[name]
    x = torch.linspace(-9, 9, 50)
    assert torch.equal(apply_activation(x, name, args), module(x))


def test_no_activation_is_the_identity() -> None:
    x = torch.randn(3)
    assert apply_activation(x, None) is x


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("padding", [(1, 1), (0, 2), (2, 0)])
def test_convolution_with_epilogue(dims: int, padding: tuple[int, int]) -> None:
    x, weight, bias = torch.randn(2, 4, *[6] * dims), torch.randn(6, 2, *[3] * dims), torch.randn(6)
    convolution = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    expected = convolution(F.pad(x, padding * dims), weight, bias, 2, 0, 1, 2)
    residual = torch.randn_like(expected)
    found = fused_convolution(x, weight, bias, residual, (2,) * dims, (padding,) * dims, (1,) * dims, 2, "relu", ())
    torch.testing.assert_close(found, torch.relu(expected + residual))


def test_padding_of_different_axes_stays_apart() -> None:
    x, weight = torch.randn(1, 1, 5, 7), torch.randn(1, 1, 2, 3)
    expected = F.conv2d(F.pad(x, (3, 4, 1, 2)), weight)
    found = fused_convolution(x, weight, None, None, (1, 1), ((1, 2), (3, 4)), (1, 1), 1, None, ())
    torch.testing.assert_close(found, expected)


def test_linear_with_epilogue() -> None:
    x, weight, bias, residual = torch.randn(2, 3, 4), torch.randn(5, 4), torch.randn(5), torch.randn(2, 3, 5)
    found = fused_linear(x, weight, bias, residual, "hardtanh", (-1.0, 1.0))
    torch.testing.assert_close(found, F.hardtanh(F.linear(x, weight, bias) + residual))
