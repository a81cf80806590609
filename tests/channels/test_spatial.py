"""Constants that differ over space, against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxprune.channels.spatial import SpatialMap, Window, combine, constant_map, convolve, stack_maps


def window(kernel: int, stride: int, padding: int, dilation: int, size: int) -> Window:
    """Return the geometry of a convolution with equal axes."""
    output = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    return Window((kernel,) * 2, (stride,) * 2, (padding,) * 2, (dilation,) * 2, (output,) * 2)


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.integers(1, 2), st.integers(0, 6))
def test_convolution_of_constants_equals_torch(
    kernel: int, stride: int, padding: int, dilation: int, more: int
) -> None:
    size = dilation * (kernel - 1) + 1 + more
    generator = np.random.default_rng(kernel + 10 * stride)
    weight, values = generator.standard_normal((3, 2, kernel, kernel)), generator.standard_normal(2)
    planes = [constant_map(float(value), (size, size)) for value in values]
    geometry = window(kernel, stride, padding, dilation, size)
    first = convolve(weight, planes, geometry)
    x = torch.from_numpy(values).view(1, 2, 1, 1).expand(1, 2, size, size)
    expected = torch.conv2d(x, torch.from_numpy(weight), None, stride, padding, dilation)[0]
    torch.testing.assert_close(torch.from_numpy(first.full()), expected, rtol=1e-12, atol=1e-12)
    assert max(first.table.shape[1:]) <= 2 * padding + 1, "as many classes as there are kinds of borders"


def test_convolution_of_maps_equals_torch() -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((2, 1, 3, 3))
    first = convolve(weight, [constant_map(1.5, (9, 7))], Window((3, 3), (1, 1), (1, 1), (1, 1), (9, 7)))
    inputs = [SpatialMap(first.classes, row) for row in first.table]
    second = generator.standard_normal((4, 2, 3, 3))
    found = convolve(second, inputs, Window((3, 3), (2, 2), (1, 1), (1, 1), (5, 4)))
    x = torch.from_numpy(first.full())[None]
    expected = torch.conv2d(x, torch.from_numpy(second), None, 2, 1)[0]
    torch.testing.assert_close(torch.from_numpy(found.full()), expected, rtol=1e-12, atol=1e-12)


def test_one_scalar_would_be_wrong_at_the_border() -> None:
    weight = np.ones((1, 1, 3, 3))
    found = convolve(weight, [constant_map(1.0, (5, 5))], Window((3, 3), (1, 1), (1, 1), (1, 1), (5, 5)))
    assert found.full()[0, 2, 2] == 9
    assert found.full()[0, 0, 0] == 4


def test_pointwise_functions_meet_on_common_classes() -> None:
    rows = SpatialMap((np.array([0, 0, 1]), np.array([0, 0])), np.array([[1.0], [2.0]]))
    columns = SpatialMap((np.array([0, 0, 0]), np.array([0, 1])), np.array([[10.0, 20.0]]))
    found = combine([rows, columns], lambda tables: tables[0] + tables[1])
    assert found.full().tolist() == [[11, 21], [11, 21], [12, 22]]


def test_mean_counts_positions_not_classes() -> None:
    plane = SpatialMap((np.array([0, 0, 0, 1]), np.array([0])), np.array([[1.0], [5.0]]))
    assert float(plane.mean()) == pytest.approx(2.0)


def test_stacked_maps_keep_their_values() -> None:
    one = SpatialMap((np.array([0, 1]),), np.array([1.0, 2.0]))
    other = SpatialMap((np.array([0, 0]),), np.array([3.0]))
    assert stack_maps([one, other]).full().tolist() == [[1, 2], [3, 3]]
