"""`regroup`: row groups instead of single cells."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fxprune.errors import MaskError
from fxprune.structure.paper import PaperRule
from fxprune.structure.regroup import Budget, Leftovers, RegroupRule, Unit, VectorRule, regroup_layers
from fxprune.structure.tiles import Efficiency
from fxprune.transform.change import ChangedMasks, log_change
from fxprune.transform.layers import Masks, Model, prepare


def regroup(
    model: Model,
    masks: Masks = None,
    *,
    method: str = "vectors",
    height: int | None = None,
    density: float | None = None,
    budget: Budget = "layer",
    unit: Unit = "column",
    leftovers: Leftovers = "drop",
    tile: int = 8,
    iterations: int = 15,
    tolerance: float = 1e-6,
    scores: Mapping[str, Tensor] | None = None,
    efficiency: Efficiency = (),
    parts: int = 8,
    ratio: float = 1.5,
    min_rows: int = 17,
    bug_compat: bool = False,
) -> ChangedMasks:
    """Turn unstructured masks into masks of row groups (rows that share their columns), for retraining.

    Args:
        model: The model with the weights that decide; it is only read.
        masks: A mapping, or the path of a file that `load_masks` reads; None reads them off the model.
        method: "vectors": groups of equal height, columns chosen under a budget. "paper": the rule of the published
            code; layers that it cannot group keep their masks, with the reason in the result.
        height: vectors: rows of a group. None: for each layer the height that captures most at equal predicted time,
            or 8 without `efficiency`.
        density: vectors: stored cells over all cells, in (0, 1]; None: as many as the masks keep.
        budget: vectors: "layer", each layer stores its own share, or "global", all layers share one budget.
        unit: vectors: what is chosen as a whole: "column", "kernel" (all of an input channel), "run4", "run8".
        leftovers: vectors: kept cells outside every group are dropped ("drop"), stay kept ("cover"), or whichever the
            predicted time says ("time", needs `efficiency`).
        tile: vectors: groups are a multiple of this many columns wide.
        iterations: vectors: most rounds of selection and assignment.
        tolerance: vectors: least growth of the captured score, as a share, for another round.
        scores: vectors: score of each cell by weight name, of the weight's shape; None: |w|.
        efficiency: vectors: pairs (height, rate of the target's kernel over the dense rate), heights increasing.
        parts: paper: parts that the non-empty rows are split in.
        ratio: paper: the width of a block exceeds this times what any of its rows keeps outside.
        min_rows: paper: least rows of a block.
        bug_compat: paper: with the two defects of the published code, which store 1.3 to 2 times as much.

    Returns:
        The new masks by name, a dict with `.changes`: what changed, layer by layer.

    Raises:
        MaskError: A mask, a score or an option does not fit.
        UnsupportedError: The model is of another type.
    """
    try:
        rule: RegroupRule
        if method == "paper":
            rule = PaperRule(parts, ratio, min_rows, bug_compat)
        elif method == "vectors":
            rule = VectorRule(height, unit, budget, density, tile, iterations, tolerance, leftovers, efficiency)
        else:
            raise MaskError(f"regroup: method is {method!r}; it needs to be 'vectors' or 'paper'.")
    except ValueError as error:
        raise MaskError(f"regroup: {error}.") from error
    changed = prepare(model, masks, scores).finish(lambda cells: regroup_layers(cells, rule))
    log_change("regroup", changed)
    return changed
