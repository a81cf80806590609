"""Regroup layers: one rule for all of them, its options, and what happens to layers that do not fit it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fxprune.annotation import RowGroup
from fxprune.structure.cells import Cells, Changed
from fxprune.structure.cover import cover_rows
from fxprune.structure.likeness import order_rows
from fxprune.structure.paper import PaperRule, regroup_paper
from fxprune.structure.tiles import Efficiency, check_efficiency, predict_cost
from fxprune.structure.vectors import Grouping, Sheet, find_vectors, make_exact, select_once

Unit = Literal["column", "kernel", "run4", "run8"]
Budget = Literal["layer", "global"]
Leftovers = Literal["drop", "cover", "time"]

DEFAULT_HEIGHT = 8
"""Rows of a group where no target says how fast its kernels are: most captured score at equal time on AVX-512
(method.md, section 9); on a ticket of the digits network 8 to 13 points of |w| above the paper's rule at equal storage,
where 16 rows are 4 to 6 points above it."""

LEAST_HEIGHT = 4
"""Least rows of a group that `height=None` tries, and least rows of a layer that is grouped."""

LEFTOVER_COST = 1.1
"""leftovers="time" keeps what lies outside the groups if the predicted time grows at most by this factor."""


@dataclass(frozen=True)
class VectorRule:
    """Row groups of equal height, columns under a budget.

    Attributes:
        height: Rows of a group; None: for each layer the height that captures most score at equal predicted time.
        unit: What is chosen as a whole: a column, all columns of an input channel, or 4 or 8 adjacent columns.
        budget: Each layer stores its own share of cells, or all layers share one budget.
        density: Stored cells over all cells, in (0, 1]; None: as many as the mask keeps.
        tile: Groups are a multiple of this many columns wide.
        iterations: Most rounds of selection and assignment.
        tolerance: Least growth of the captured score, as a share, for another round.
        leftovers: Kept cells outside every group are dropped ("drop"), stay kept ("cover"), or whichever the predicted
            time says ("time").
        efficiency: Pairs (height, rate of the target's kernel over the dense rate); empty: unknown.
    """

    height: int | None = None
    unit: Unit = "column"
    budget: Budget = "layer"
    density: float | None = None
    tile: int = 8
    iterations: int = 15
    tolerance: float = 1e-6
    leftovers: Leftovers = "drop"
    efficiency: Efficiency = ()

    def __post_init__(self) -> None:
        _check_choice("unit", self.unit, ("column", "kernel", "run4", "run8"))
        _check_choice("budget", self.budget, ("layer", "global"))
        _check_choice("leftovers", self.leftovers, ("drop", "cover", "time"))
        if self.density is not None and not 0 < self.density <= 1:
            raise ValueError(f"density is {self.density}; it needs to be in (0, 1]")
        if (self.height is not None and self.height < 1) or self.tile < 1 or self.iterations < 0:
            raise ValueError(f"{self} is out of range; height and tile are from 1 up, iterations from 0")
        if self.efficiency:
            check_efficiency(self.efficiency)
        elif self.leftovers == "time":
            raise ValueError("leftovers='time' needs to know how fast the target's kernels are; give efficiency")


RegroupRule = VectorRule | PaperRule


def regroup_layers(layers: Sequence[Cells], rule: RegroupRule) -> list[Changed]:
    """Regroup every layer; a layer that the rule does not fit keeps its mask, with the reason.

    Args:
        layers: All layers.
        rule: The rule with its options.

    Returns:
        The new masks, one a layer.
    """
    refused = {index: reason for index, layer in enumerate(layers) if (reason := find_obstacle(layer, rule))}
    wanted = [index for index in range(len(layers)) if index not in refused]
    changed = {index: Changed(layers[index].mask, reason=why, refused=True) for index, why in refused.items()}
    if isinstance(rule, PaperRule):
        changed |= {index: _regroup_by_paper(layers[index], rule) for index in wanted}
    elif rule.budget == "global":
        found = _regroup_by_vectors([layers[index] for index in wanted], rule) if wanted else []
        changed |= dict(zip(wanted, found, strict=True))
    else:
        changed |= {index: _regroup_by_vectors([layers[index]], rule)[0] for index in wanted}
    return [changed[index] for index in range(len(layers))]


def find_obstacle(layer: Cells, rule: RegroupRule) -> str | None:
    """Return why a layer cannot be regrouped, or None.

    Args:
        layer: Any layer.
        rule: The rule.
    """
    rows = layer.mask.shape[0] // layer.conv_groups
    if layer.depthwise:
        return f"depthwise, {layer.conv_groups} conv groups of one row: no two rows share an input channel."
    if isinstance(rule, PaperRule) and layer.conv_groups > 1:
        return f"the paper's rule knows no conv groups, this layer has {layer.conv_groups}; method='vectors' does."
    if isinstance(rule, VectorRule) and rows < LEAST_HEIGHT:
        return f"{rows} rows are fewer than one vector of {LEAST_HEIGHT}."
    if not layer.mask.any():
        return "the mask keeps nothing."
    if layer.scores.ndim == 1:
        return "scores of whole rows say nothing about columns; give the score of each cell."
    if not bool(np.any(layer.scores[layer.mask] > 0)):
        return "every kept cell has score 0: no group is better than another."
    return None


def _regroup_by_paper(layer: Cells, rule: PaperRule) -> Changed:
    found = regroup_paper(layer.mask, rule)
    if isinstance(found, str):
        return Changed(layer.mask, reason=found, refused=True)
    return Changed(_fill(layer.mask.shape, found), found)


def _regroup_by_vectors(layers: Sequence[Cells], rule: VectorRule) -> list[Changed]:
    """Regroup layers that share a budget."""
    scores = make_exact([np.where(layer.mask, layer.scores, 0.0) for layer in layers])
    sheets = [_cut_sheets(layer, score, rule) for layer, score in zip(layers, scores, strict=True)]
    heights = [_choose_height(layer, parts, rule) for layer, parts in zip(layers, sheets, strict=True)]
    budget = sum(_count_budget(layer, rule) for layer in layers)
    flat = [sheet for parts in sheets for sheet in parts]
    each = [height for parts, height in zip(sheets, heights, strict=True) for _ in parts]
    found = iter(find_vectors(flat, each, budget, iterations=rule.iterations, tolerance=rule.tolerance))
    changed = []
    for layer, parts in zip(layers, sheets, strict=True):
        groups, filled = _build_groups(parts, [next(found) for _ in parts])
        changed.append(_finish(layer, groups, rule, _FLOOR if filled else None))
    return changed


_FLOOR = "the budget gave this layer nothing; it keeps its best tile, or the network would be cut in two."


def _count_budget(layer: Cells, rule: VectorRule) -> int:
    return int(layer.mask.sum() if rule.density is None else round(rule.density * layer.mask.size))


def _cut_sheets(layer: Cells, scores: NDArray[np.float64], rule: VectorRule) -> list[Sheet]:
    """Cut a layer into its conv groups, rows ordered by likeness."""
    unit = {"column": 1, "kernel": layer.kernel, "run4": 4, "run8": 8}[rule.unit]
    parts = np.split(scores, layer.conv_groups)
    return [Sheet(part, order_rows(part), unit, rule.tile) for part in parts]


def _choose_height(layer: Cells, sheets: Sequence[Sheet], rule: VectorRule) -> int:
    """Return the rows of a group: as asked, or most captured score at equal predicted time."""
    rows: int = layer.mask.shape[0] // layer.conv_groups
    if rule.height is not None:
        return min(rows, rule.height)
    options = [(height, rate) for height, rate in rule.efficiency if LEAST_HEIGHT <= height <= rows]
    if not options:
        return min(rows, DEFAULT_HEIGHT)
    budget = _count_budget(layer, rule) / max(rate for _, rate in options) / len(sheets)
    captured = {
        height: sum(select_once(sheet, height, int(budget * rate)) for sheet in sheets) for height, rate in options
    }
    return max(captured, key=lambda height: (captured[height], height))


def _build_groups(sheets: Sequence[Sheet], groupings: Sequence[Grouping]) -> tuple[tuple[RowGroup, ...], bool]:
    """Build the row groups of one layer; the second value says that its best tile was added."""
    empty = not any(grouping.kept.any() for grouping in groupings)
    if empty:  # only a budget shared with other layers leaves nothing
        groupings = find_vectors(sheets, [_height_of(item) for item in groupings], 0, iterations=0, tolerance=0.0)
    first = 0
    groups: list[RowGroup] = []
    for sheet, grouping in zip(sheets, groupings, strict=True):
        for group in np.flatnonzero(grouping.kept.any(axis=1)):
            rows, columns = np.flatnonzero(grouping.labels == group) + first, np.flatnonzero(grouping.kept[group])
            groups.append(RowGroup(rows.astype(np.int32), columns.astype(np.int32)))
        first += len(sheet.order)
    return tuple(sorted(groups, key=lambda group: int(group.rows[0]))), empty


def _height_of(grouping: Grouping) -> int:
    return int(np.bincount(grouping.labels).max())


def _finish(layer: Cells, groups: tuple[RowGroup, ...], rule: VectorRule, reason: str | None) -> Changed:
    """Return the new mask with the leftovers as the rule wants them."""
    mask = _fill(layer.mask.shape, groups)
    both = mask | layer.mask
    if rule.leftovers == "cover" or (rule.leftovers == "time" and _is_cheap(layer, mask, both, rule.efficiency)):
        return Changed(both, groups, reason)
    return Changed(mask, groups, reason)


def _is_cheap(layer: Cells, mask: NDArray[np.bool_], both: NDArray[np.bool_], efficiency: Efficiency) -> bool:
    """Return whether keeping the leftovers costs little predicted time."""
    costs = [predict_cost(cover_rows(cells, layer.conv_groups, efficiency), efficiency) for cells in (mask, both)]
    return costs[1] <= costs[0] * LEFTOVER_COST


def _fill(shape: tuple[int, ...], groups: Sequence[RowGroup]) -> NDArray[np.bool_]:
    mask = np.zeros(shape, dtype=np.bool_)
    for group in groups:
        mask[np.ix_(group.rows, group.columns)] = True
    return mask


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; it needs to be one of {', '.join(map(repr, known))}")
