"""Which layers of a graph kernels could compute, and why they cannot compute the others."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx

from fxprune.codegen.format import full_pattern
from fxprune.layer import find_layer
from fxprune.lowering.choice import Case, constant
from fxprune.lowering.geometry import FLOAT32, find_obstacle, shape_of
from fxprune.nodes import annotation_of


def find_cases(
    gm: fx.GraphModule, *, depthwise: bool = True, types: Collection[torch.dtype] = FLOAT32
) -> tuple[dict[fx.Node, Case], dict[fx.Node, str]]:
    """Return the layers that kernels could compute, and why they cannot compute the others.

    Args:
        gm: The graph after all passes.
        depthwise: Whether the target has a kernel for depthwise layers.
        types: What the target has kernels for.
    """
    cases: dict[fx.Node, Case] = {}
    obstacles: dict[fx.Node, str] = {}
    for node in gm.graph.nodes:
        layer, annotation = find_layer(node), annotation_of(node)
        if layer is None or annotation is None:
            continue
        obstacle = find_obstacle(layer, depthwise=depthwise, types=types)
        if obstacle is not None:
            obstacles[node] = obstacle
            continue
        shape = shape_of(layer)
        weight, bias = constant(gm, layer.weight), constant(gm, layer.bias)
        assert weight is not None
        cells = weight.detach().float().reshape(shape.channels_out, -1).contiguous().numpy()
        numbers = None if bias is None else bias.detach().float().contiguous().numpy()
        cases[node] = Case(
            layer, annotation, shape, cells, numbers, annotation.pattern or full_pattern(cells.shape, shape.groups)
        )
    return cases, obstacles
