"""A compiled model holds its packed weights once, and nothing of the graph that it was made from."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import fx, nn

from fxprune.annotation import META_KEY
from fxprune.codegen.kernel import LayerKernel
from tests.compiling import check, draw_masks, force_kernels, row_groups


def _count(kind: type) -> int:
    gc.collect()
    return sum(type(found) is kind for found in gc.get_objects())


def test_only_the_bound_arrays_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    force_kernels(monkeypatch, "rows")
    model = nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.Tanh()).eval()
    kernels, nodes = _count(LayerKernel), _count(fx.Node)
    compiled = check(model, draw_masks(model, row_groups(32)), torch.randn(1, 32, 9, 9))
    assert all(layer.kernel.startswith("rows") for layer in compiled.report.layers)
    assert _count(LayerKernel) == kernels, "the packed arrays are there twice"
    graph = compiled.graph_module.graph
    root = 1
    assert _count(fx.Node) == nodes + root + len(graph.nodes), "nodes that were replaced are still alive"
    assert not any(META_KEY in node.meta for node in graph.nodes)
