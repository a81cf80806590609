"""Layers that overwrite their residual: its memory is in the cache already, and a call needs one buffer less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import fx

from fxprune.codegen.row_schedules import refit
from fxprune.codegen.schedules import may_overwrite
from fxprune.codegen.target import CpuTarget
from fxprune.layer import Layer
from fxprune.lowering.choice import Choice
from fxprune.lowering.plan import Placement, last_uses


def find_last_readers(graph: fx.Graph, layers: Mapping[fx.Node, Layer]) -> set[fx.Node]:
    """Return the layers after which nothing reads their residual, which is no input of theirs.

    Args:
        graph: The graph.
        layers: Its layers.
    """
    index, last = {node: position for position, node in enumerate(graph.nodes)}, last_uses(graph)
    return {
        node
        for node, layer in layers.items()
        if layer.residual is not None and layer.residual is not layer.input and last[layer.residual] == index[node]
    }


def overwrite_residuals(
    placements: Mapping[fx.Node, Placement],
    last_readers: set[fx.Node],
    choices: Mapping[fx.Node, Choice],
    target: CpuTarget,
) -> dict[fx.Node, Placement]:
    """Return the placements, with `work.in_place` for every layer that may overwrite its residual.

    Args:
        placements: All lowered layers.
        last_readers: Those that are the last to read their residual.
        choices: What runs them.
        target: The CPU.
    """
    found = dict(placements)
    for node, placement in placements.items():
        work, schedule = placement.work, choices[node].schedule
        assert schedule is not None
        planned = node in last_readers and isinstance(placement.residual_source, fx.Node)
        if planned and may_overwrite(refit(schedule, work, target), work):
            found[node] = replace(placement, work=replace(work, in_place=True))
    return found
