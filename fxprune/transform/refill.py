"""`refill`: whole rows instead of single cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fxprune.errors import MaskError
from fxprune.structure.refill import RefillRule, refill_layers
from fxprune.transform.change import ChangedMasks, log_change
from fxprune.transform.layers import Masks, Model, Prepared, prepare


def refill(
    model: Model,
    masks: Masks = None,
    *,
    rate: float = 0.0,
    scores: Mapping[str, Tensor] | None = None,
    parity: bool = False,
    multiple: int = 1,
    coupled: Sequence[Sequence[str]] = (),
) -> ChangedMasks:
    """Turn unstructured masks into masks of whole rows (output channels), for retraining.

    In each layer as many rows survive as its kept cells would fill, those of the largest scores; they become whole.

    Args:
        model: The model with the weights that decide; it is only read.
        masks: A mapping, or the path of a file that `load_masks` reads; None reads them off the model.
        rate: Share of the remaining rows kept in addition; 0 is refill, 0.2 the paper's refill+.
        scores: By weight name the score of each row ([O]), e.g. of `saliency`, or of each cell (the weight's shape).
            None: |w|, the paper's choice.
        parity: Count rows as the published code does, floor(nnz / n) + 1 instead of round(nnz / n).
        multiple: Round the number of rows up to a multiple, e.g. 8, 16 or 32, the rows of a tile.
        coupled: Sets of weight names that keep the same rows, e.g. both ends of a residual addition, as
            `find_coupled` returns them.

    Returns:
        The new masks by name, a dict with `.changes`: what changed, layer by layer.

    Raises:
        MaskError: A mask, a score, a coupled name or an option does not fit.
        UnsupportedError: The model is of another type.
    """
    try:
        rule = RefillRule(rate, parity, multiple)
    except ValueError as error:
        raise MaskError(f"refill: {error}.") from error
    prepared = prepare(model, masks, scores)
    sets = find_sets(prepared, coupled)
    changed = prepared.finish(lambda cells: refill_layers(cells, rule, sets))
    log_change("refill", changed)
    return changed


def find_sets(prepared: Prepared, coupled: Sequence[Sequence[str]]) -> list[list[int]]:
    """Return coupled names as indices of the layers; names without a mask are left out.

    Raises:
        MaskError: A weight is in two sets, or the members of a set have different numbers of rows.
    """
    names = list(prepared.cells)
    seen: set[str] = set()
    sets = []
    for members in coupled:
        known = [name for name in members if name in prepared.cells]
        twice = seen.intersection(known)
        if twice:
            raise MaskError(f"refill: {min(twice)!r} is in two coupled sets; join them into one.")
        seen.update(known)
        rows = {name: len(prepared.cells[name].mask) for name in known}
        if len(set(rows.values())) > 1:
            raise MaskError(f"refill: coupled weights have different numbers of rows: {rows}.")
        if known:
            sets.append([names.index(name) for name in known])
    return sets
