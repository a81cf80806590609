"""Layers that overwrite their residual: its memory is in the cache already, and a call needs one buffer less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import fx

from fxprune.annotation import RowGroupPattern
from fxprune.codegen.cpu.rows import RowsSchedule
from fxprune.codegen.format import packed_lanes
from fxprune.codegen.schedules import Schedule, computes_once, refit, stored_pattern
from fxprune.codegen.target import CpuTarget
from fxprune.codegen.workload import ConvShape
from fxprune.lowering.choice import Choice
from fxprune.lowering.plan import Placement, last_uses


def overwrite_residuals(
    graph: fx.Graph,
    placements: Mapping[fx.Node, Placement],
    choices: Mapping[fx.Node, Choice],
    patterns: Mapping[fx.Node, RowGroupPattern],
    target: CpuTarget,
) -> dict[fx.Node, Placement]:
    """Return the placements, with `work.in_place` for every layer that is the last to read a residual of its layout.

    Args:
        graph: The graph.
        placements: Its lowered layers.
        choices: What runs them.
        patterns: Their row groups.
        target: The CPU.
    """
    index, last = {node: position for position, node in enumerate(graph.nodes)}, last_uses(graph)

    def may_overwrite(node: fx.Node, placement: Placement) -> bool:
        residual, work, schedule = placement.residual_source, placement.work, choices[node].schedule
        assert schedule is not None
        return (
            isinstance(residual, fx.Node)
            and residual is not placement.source
            and last[residual] == index[node]
            and work.residual == work.y
            and computes_once(refit(schedule, work, target), work)
            and not _is_ragged(patterns[node], schedule, work.shape)
        )

    return {
        node: replace(placement, work=replace(placement.work, in_place=True))
        if may_overwrite(node, placement)
        else placement
        for node, placement in placements.items()
    }


def _is_ragged(pattern: RowGroupPattern, schedule: Schedule, shape: ConvShape) -> bool:
    """Whether blocks end with zero rows; stored in place they would be stored lane by lane, which costs more."""
    if not isinstance(schedule, RowsSchedule):
        return False
    return packed_lanes(stored_pattern(pattern, schedule, shape.groups), schedule.height) != shape.channels_out
