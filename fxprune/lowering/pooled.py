"""Pools that the kernel of the layer before them computes: what the layer computes is never written to memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import fx

from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.row_schedules import may_pool
from fxprune.codegen.target import CpuTarget
from fxprune.codegen.workload import Layout, Windows, Workload
from fxprune.layer import find_layer
from fxprune.lowering.choice import Case, Choice
from fxprune.lowering.pool import Pooling, find_pools
from fxprune.nodes import copy_graph


class Pooled(NamedTuple):
    """A graph whose layers pool what they compute wherever their kernels can.

    Attributes:
        gm: The graph; a layer that pools stands for its pool as well.
        cases: Layers that kernels could compute, by node of that graph.
        choices: What runs them.
        windows: Pooling of the layers that pool.
    """

    gm: fx.GraphModule
    cases: Mapping[fx.Node, Case]
    choices: Mapping[fx.Node, Choice]
    windows: dict[fx.Node, Windows]


def pool_in_kernels(
    gm: fx.GraphModule, cases: Mapping[fx.Node, Case], choices: Mapping[fx.Node, Choice], target: CpuTarget
) -> Pooled:
    """Let every row-lane kernel that can compute the pool after its layer, if nothing else reads the layer.

    Args:
        gm: The annotated graph; it is not changed.
        cases: Layers that kernels could compute.
        choices: What runs them.
        target: The CPU.
    """
    pools = find_pools(gm.graph, {node: case.layer for node, case in cases.items()}, choices)
    found = [pool for pool in pools.values() if pool.input in cases]
    found = [pool for pool in found if _can_pool(cases[pool.input], choices[pool.input], pool, target)]
    if not found:
        return Pooled(gm, cases, choices, {})
    graph, mapped = copy_graph(gm)
    windows = {mapped[pool.input]: _windows(pool) for pool in found}
    for pool in found:
        layer, node = mapped[pool.input], mapped[pool.node]
        layer.meta = {**layer.meta, "val": node.meta["val"]}
        node.replace_all_uses_with(layer)
        graph.erase_node(node)
    moved = {mapped[node]: _move(case, mapped[node]) for node, case in cases.items()}
    kept = {mapped[node]: choice for node, choice in choices.items()}
    return Pooled(fx.GraphModule(gm, graph), moved, kept, windows)


def _windows(pool: Pooling) -> Windows:
    return Windows(pool.kind, *pool.kernel)


def _move(case: Case, node: fx.Node) -> Case:
    """Return a case with the layer of another graph."""
    layer = find_layer(node)
    assert layer is not None
    return replace(case, layer=layer)


def _can_pool(case: Case, choice: Choice, pool: Pooling, target: CpuTarget) -> bool:
    layer, shape, windows = case.layer, case.shape, _windows(pool)
    alone = len(pool.input.users) == 1 and layer.residual is None
    if not isinstance(choice.schedule, RowsSchedule) or not alone:
        return False
    if pool.kernel == (1, 1) or pool.stride != pool.kernel or pool.padding != (0, 0):
        return False
    if windows.pooled(shape.spatial_out) != pool.spatial_out:
        return False
    x = Layout("nhwc", shape.batch, shape.channels_in, shape.spatial_in)
    y = Layout("nhwc", shape.batch, shape.channels_out, pool.spatial_out)
    work = Workload(shape, x, y, None, layer.activation, layer.activation_args, target.threads, windows=windows)
    return may_pool(choice.schedule, work, target)
