"""Run operators on known values."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx
from torch.fx.node import Argument, map_arg

from fxprune.channels.grid import BoolArray, Shape
from fxprune.channels.spatial import FloatArray


def constant_on_grid(tensor: torch.Tensor, shape: Shape, grid: Shape) -> tuple[FloatArray, BoolArray]:
    """Return a constant operand's value in every cell, and where it has one value in the whole cell.

    Args:
        tensor: The constant.
        shape: Its shape with the rank of the result.
        grid: The result's grid.
    """
    values = np.asarray(tensor.detach().double().cpu().numpy()).reshape(shape)
    axes = tuple(axis for axis, size in enumerate(shape) if size > 1 and grid[axis] == 1)
    low, high = values.min(axis=axes, keepdims=True), values.max(axis=axes, keepdims=True)
    return np.broadcast_to(low, grid), np.broadcast_to(low == high, grid)


def evaluate(node: fx.Node, numbers: dict[fx.Node, FloatArray]) -> FloatArray:
    """Run a pointwise operator on arrays of numbers of one shape, in float64."""

    def number(source: fx.Node) -> Argument:
        value = source.meta["val"]
        tensor = torch.from_numpy(np.ascontiguousarray(numbers[source]))
        return tensor if value.is_floating_point() else tensor.to(value.dtype)

    args, kwargs = map_arg((node.args, dict(node.kwargs)), number)
    kwargs = {name: value for name, value in kwargs.items() if name not in ("dtype", "layout", "device")}
    assert callable(node.target)
    result: torch.Tensor = node.target(*args, **kwargs)
    return np.asarray(result.double().numpy())
