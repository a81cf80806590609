"""Which layers get a kernel on a GPU: floors, margins, conversions, and the sentence in the report."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

import fxprune
from fxprune.codegen.workload import Layout
from fxprune.lowering.cuda.plan import Interval, plan_buffers
from fxprune.report import CompileReport, LayerReport
from tests.compiling import Layers, Mask, draw_masks, everything, row_groups
from tests.networks import Function

pytestmark = pytest.mark.usefixtures("no_nvcc")

ARCH = {"kind": "cuda", "arch": "sm_90a"}


def report_of(model: nn.Module, x: torch.Tensor, *kinds: Mask) -> CompileReport:
    return fxprune.compile(model.eval(), draw_masks(model, *kinds), ARCH, example_inputs=x).report


def only_layer(channels: int, kernel: int, batch: int, size: int, *kinds: Mask) -> LayerReport:
    model = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
    (layer,) = report_of(model, torch.randn(batch, channels, size, size), *kinds).layers
    return layer


def test_a_sparse_layer_of_a_large_batch_gets_a_kernel() -> None:
    layer = only_layer(256, 3, 32, 14, row_groups(32, 0.15))
    assert layer.kernel.startswith("columns")
    assert layer.predicted_us is not None
    assert "dense in strict float32" in layer.reason
    assert layer.measured_us is layer.dense_us is None


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: only_layer(16, 1, 32, 32, row_groups(8, 0.2)),
            r"bytes forbid a gain: \d+ FLOP a byte dense, ridge 14",
        ),
        (lambda: only_layer(128, 3, 8, 14, everything), "multiply-adds forbid a gain at stored density 1.00"),
        (lambda: only_layer(64, 3, 4, 28, row_groups(32, 0.3)), r"no tile makes enough of stored density 0\.\d\d"),
    ],
)
def test_what_no_kernel_can_win_stays_dense_and_says_why(make: Callable[[], LayerReport], reason: str) -> None:
    layer = make()
    assert layer.kernel == "dense: torch"
    assert re.search(reason, layer.reason), layer.reason


def test_a_gain_smaller_than_the_conversions_is_left() -> None:
    """The layer alone is faster on a kernel; between dense layers both its tensors have to be converted."""
    model = nn.Sequential(
        nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
    )
    report = report_of(model, torch.randn(12, 64, 28, 28), everything, row_groups(32, 0.12), everything)
    assert [layer.kernel for layer in report.layers] == ["dense: torch"] * 3
    assert "but converting its tensors would take the gain" in report.layers[1].reason
    assert report.whole_model.startswith("dense: no layer is predicted to gain on H200")


def test_neighbours_that_gain_together_do() -> None:
    model = nn.Sequential(*(nn.Conv2d(64, 64, 3, padding=1) for _ in range(6)))
    report = report_of(model, torch.randn(16, 64, 28, 28), row_groups(32, 0.2))
    assert all(layer.kernel.startswith("columns") for layer in report.layers)
    assert report.whole_model.startswith("sparse: 6 of 6 layers on kernels for sm_90a, chosen by the cost model")


def test_a_batch_of_one_stays_dense() -> None:
    """A launch takes longer than the layer."""
    model = nn.Sequential(*(nn.Conv2d(64, 64, 3, padding=1) for _ in range(3)))
    report = report_of(model, torch.randn(1, 64, 14, 14), row_groups(32, 0.2))
    assert [layer.kernel for layer in report.layers] == ["dense: torch"] * 3


def test_depthwise_layers_say_why_they_stay() -> None:
    def forward(net: Layers, x: torch.Tensor) -> torch.Tensor:
        return net.depthwise(x)

    model = Function(forward, depthwise=nn.Conv2d(16, 16, 3, groups=16))
    (layer,) = report_of(model, torch.randn(2, 16, 8, 8), everything).layers
    assert "depthwise" in layer.reason


def _layout(channels: int) -> Layout:
    return Layout("chwn", 2, channels, (1, 4, 4))


def test_a_buffer_serves_one_layout_and_one_tensor_at_a_time() -> None:
    small, large = _layout(4), _layout(8)
    intervals = [
        Interval(small, 0, 2),
        Interval(small, 2, 3),
        Interval(small, 3, 5),
        Interval(large, 3, 9),
        Interval(small, 6, 7),
    ]
    places, buffers = plan_buffers(intervals)
    assert buffers == [small, small, large]
    assert places == [0, 1, 0, 2, 0]
