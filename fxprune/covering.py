"""The row groups of a layer for kernels of one height: the other half of what is searched, besides the schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import fx

from fxprune.lowering.choice import Case, Choice
from fxprune.structure.cover import cover_rows

_ONLY = 1.0
"""Rate of the only tile height there is: with nothing to compare it with, any would do."""


def cover_at(case: Case, height: int | None) -> Case:
    """Return a layer with its mask covered for tiles of one height.

    Args:
        case: The layer.
        height: Rows of a tile; None: the layer as it is.
    """
    if height is None or case.annotation.density == 1:
        return case
    mask = case.annotation.mask.numpy().reshape(case.shape.channels_out, -1)
    return replace(case, pattern=cover_rows(mask, case.shape.groups, ((height, _ONLY),)))


def cover_all(cases: Mapping[fx.Node, Case], choices: Mapping[fx.Node, Choice]) -> dict[fx.Node, Case]:
    """Return every layer with its mask covered for what was chosen to run it.

    Args:
        cases: The layers.
        choices: What runs them.
    """
    return {node: cover_at(case, choices[node].group_height) for node, case in cases.items()}
