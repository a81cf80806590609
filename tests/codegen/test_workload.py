"""Shapes, layouts and the offsets that columns of a weight become."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fxprune.codegen.workload import ConvShape, Layout, Workload, column_offsets
from tests.codegen.suite import conv, halo, linear

SHAPES = [
    conv(4, 6, (9, 7), 3, padding=1),
    conv(4, 6, (9, 7), 3, padding=2, stride=2, dilation=2, batch=3),
    conv(4, 6, (9, 8), (1, 4), padding=halo((0, 0), (1, 2)), stride=(3, 1), groups=2),
    conv(4, 6, (11,), (5,), stride=(2,), dilation=(1,)),
    conv(4, 6, (5, 6, 7), (3, 1, 2), padding=1, stride=(1, 2, 1), dilation=(2, 1, 3)),
    linear(5, 4, 6),
]
AROUND = halo((1, 0), (2, 1), (0, 3))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_output_size_is_that_of_torch(shape: ConvShape) -> None:
    x = torch.zeros(shape.batch, shape.channels_in, *shape.spatial_in)
    x = F.pad(x, [size for pair in reversed(shape.padding) for size in pair])
    weight = torch.zeros(shape.channels_out, shape.channels_in // shape.groups, *shape.kernel)
    y = F.conv3d(x, weight, None, shape.stride, 0, shape.dilation, shape.groups)
    assert tuple(y.shape[2:]) == shape.spatial_out
    assert y[:, 0].numel() == shape.pixels
    assert weight[0].numel() == shape.columns
    assert shape.macs(10) == 10 * shape.pixels


@pytest.mark.parametrize(
    ("shape", "pointwise"),
    [
        (linear(5, 4, 6), True),
        (conv(4, 6, (3, 4, 5), (1, 1, 1)), True),
        (conv(4, 6, (5, 5), 1, stride=2), False),
        (conv(4, 6, (5, 5), 1, padding=1), False),
        (conv(4, 6, (5, 5), (1, 2)), False),
    ],
)
def test_pointwise_means_no_neighbours_no_stride_no_padding(shape: ConvShape, pointwise: bool) -> None:
    assert shape.is_pointwise is pointwise


@pytest.mark.parametrize("spatial", [(1, 3, 4), (2, 3, 4)])
def test_a_layout_is_torchs_padded_tensor(spatial: tuple[int, int, int]) -> None:
    layout = Layout("nhwc", 2, 5, spatial, AROUND)
    padded = torch.arange(2 * 5 * prod(layout.padded)).reshape(2, *layout.padded, 5).permute(0, 4, 1, 2, 3)
    assert layout.numel == padded.numel()
    assert layout.strides == padded.stride()
    (d, _), (h, _), (w, _) = AROUND
    assert layout.origin == int(padded[0, 0, d, h, w])
    plain = Layout("nchw", 2, 5, spatial)
    assert plain.strides == torch.zeros(2, 5, *spatial).stride()
    assert plain.origin == 0


@pytest.mark.parametrize(
    ("spatial", "plane"),
    [((1, 7, 7), 64), ((1, 14, 14), 208), ((1, 56, 56), 3136), ((1, 4, 4), 16), ((1, 1, 3), 3), ((1, 32, 32), 1040)],
)
def test_spread_planes_begin_on_cache_lines_in_different_sets(spatial: tuple[int, int, int], plane: int) -> None:
    layout = Layout("nchw", 2, 5, spatial, spread=True)
    assert layout.plane == plane
    assert layout.strides == (5 * plane, plane, spatial[1] * spatial[2], spatial[2], 1)
    assert layout.numel == 10 * plane


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_offsets_lead_to_the_tap_of_each_column(shape: ConvShape, shuffled: bool) -> None:
    """Walk from the first tap of the last output position; compare with torch's own unfolding of a numbered input."""
    channels = 2 * shape.channels_in
    order = np.random.default_rng(0).permutation(channels)[: shape.channels_in].astype(np.int32)
    layout = Layout("nhwc", shape.batch, channels if shuffled else shape.channels_in, shape.spatial_in, shape.padding)
    buffer = torch.arange(layout.numel)
    padded = buffer.view(shape.batch, *layout.padded, layout.channels).permute(0, 4, 1, 2, 3)
    own = padded[:, torch.from_numpy(order).long()] if shuffled else padded
    work = Workload(shape, layout, layout, None, None, (), 1)
    per_group = shape.channels_in // shape.groups
    start = [(out - 1) * step for out, step in zip(shape.spatial_out, shape.stride, strict=True)]
    first = sum(s * step for s, step in zip(start, layout.strides[2:], strict=True))
    taps = [torch.arange(k) * d + s for k, d, s in zip(shape.kernel, shape.dilation, start, strict=True)]
    for group in range(shape.groups):
        mine = own[0, group * per_group : (group + 1) * per_group]
        wanted = mine[:, taps[0]][:, :, taps[1]][:, :, :, taps[2]].reshape(-1)
        found = column_offsets(np.arange(shape.columns, dtype=np.int32), group, work, order if shuffled else None)
        assert found.dtype == np.int32
        assert torch.equal(buffer[torch.from_numpy(found).long() + first], wanted)
