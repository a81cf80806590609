"""What the values of a flat mapping mean: masks, scores, or weights whose zeros are the mask."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fxprune.errors import MaskError
from fxprune.masks.keys import find_parameter, strip_prefixes
from fxprune.masks.names import find_name, find_weights
from fxprune.masks.values import convert_values

logger = logging.getLogger(__name__)

Model = nn.Module | ExportedProgram | fx.GraphModule

_BIAS = re.compile(r"(?:.+\.)?bias")


def collect(
    flat: Mapping[str, object],
    *,
    keep: bool,
    threshold: float | None,
    model: Model | None,
    only_marked: bool = False,
) -> dict[str, Tensor]:
    """Return the masks in a flat mapping by the names that stand there.

    If a key is known to hold a mask, only such keys count. Else, if the values are those of masks, every key does. Else
    the mapping holds weights, and their zeros are the masks.

    Args:
        flat: Keys to values; a value of None is a dense layer.
        keep: Whether 1 means kept.
        threshold: The values are scores, kept above it; None: they are 0 or 1.
        model: Its layers are those whose zeros count; None: every weight with two or more axes.
        only_marked: Take only keys that are known to hold a mask, and return nothing if there is none.

    Raises:
        MaskError: No mask is there, or some are not of 0 and 1; all of them are named.
    """
    values = {key: _read(key, value) for key, value in flat.items() if value is not None}
    tensors = {key: value for key, value in values.items() if value is not None}
    marked = {name: tensors[key] for key in tensors if (name := find_parameter(key, flat.keys())) is not None}
    if only_marked or marked:
        return _convert(_leave_out_biases(marked), keep=keep, threshold=threshold)
    if not tensors:
        raise MaskError("The source holds no mask: no tensor at all.")
    if threshold is not None or _are_masks(tensors):
        return _convert(_leave_out_biases(tensors), keep=keep, threshold=threshold)
    return _read_zeros(tensors, model)


def fit(masks: Mapping[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Expand masks of output channels to the shapes of their weights; whatever else does not fit is left as it is.

    Args:
        masks: Masks by name.
        model: Gives the shapes.
    """
    weights = find_weights(model)
    fitted = {}
    for name, mask in masks.items():
        try:
            weight = weights.tensors[find_name(name, weights)]
        except MaskError:  # reported with all the others by resolve_masks
            fitted[name] = mask
            continue
        rows = weight.shape[:1]
        channels = weight.dim() > 1 and mask.shape in (rows, torch.Size([*rows, *[1] * (weight.dim() - 1)]))
        fitted[name] = mask.reshape(-1, *[1] * (weight.dim() - 1)).expand(weight.shape) if channels else mask
        if not bool(mask.any()):
            logger.warning("the mask of %s keeps nothing", name)
    return fitted


def _read(key: str, value: object) -> Tensor | None:
    """Return a value as a tensor; None for what is no tensor, and for what is no array of numbers."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        kind = np.float64 if value.dtype.kind == "f" else value.dtype.newbyteorder("=")
        return torch.from_numpy(np.array(value, dtype=kind))
    if isinstance(value, Tensor):
        if value.is_meta or value.is_quantized:
            found = "on the meta device, so it holds no values" if value.is_meta else f"quantised ({value.dtype})"
            raise MaskError(f"{key!r} is {found}; give a plain tensor with values.")
        return value.detach()
    logger.debug("%r is a %s and no mask", key, type(value).__name__)
    return None


def _are_masks(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether these are masks: none is float and dense, or more than half of what is not zero is one."""
    weights = [value for value in tensors.values() if value.dim() > 1] or list(tensors.values())
    plain = [value for value in weights if value.layout == torch.strided and value.is_floating_point()]
    if not plain:
        return True
    ones = sum(int((value == 1).sum()) for value in plain)
    others = sum(int((value != 0).sum()) for value in plain)
    return 2 * ones > others


def _convert(tensors: Mapping[str, Tensor], *, keep: bool, threshold: float | None) -> dict[str, Tensor]:
    """Turn values into masks; one error names all that are none."""
    masks: dict[str, Tensor] = {}
    problems = []
    for name, value in tensors.items():
        try:
            mask = convert_values(value) if threshold is None else _keep_above(value, threshold)
        except MaskError as error:
            problems.append(f"masks[{name!r}] {error}.")
            continue
        masks[name] = mask if keep else ~mask
    if problems:
        raise MaskError("\n- ".join([f"{len(problems)} values are no masks:", *problems[:10]]))
    return masks


def _keep_above(scores: Tensor, threshold: float) -> Tensor:
    if scores.layout != torch.strided or scores.is_complex():
        raise MaskError(f"has layout {scores.layout} and dtype {scores.dtype}; scores are plain real tensors")
    if bool(scores.isnan().any()):
        raise MaskError("holds NaN, which is neither above nor below a threshold")
    return (scores > threshold).cpu()


def _leave_out_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    biases = [name for name in tensors if _BIAS.fullmatch(name)]
    if biases:
        logger.info("%d masks of biases are left out; multiply them into the biases", len(biases))
    return {name: value for name, value in tensors.items() if name not in biases}


def _read_zeros(tensors: Mapping[str, Tensor], model: Model | None) -> dict[str, Tensor]:
    """Return the zeros of weights as masks, for weights that have any."""
    known = None if model is None else find_weights(model)
    names = strip_prefixes(list(tensors), None if known is None else set(known.tensors))
    masks = {}
    for key, value in tensors.items():
        if value.dim() < 2 or value.layout != torch.strided or not value.is_floating_point():
            continue
        if (names[key] not in known.layers) if known is not None else not key.endswith("weight"):
            continue
        if bool(value.isnan().any()):
            raise MaskError(f"{key!r} holds NaN: a weight that is neither zero nor not.")
        if bool((value == 0).any()):
            masks[key] = (value != 0).cpu()
    if not masks:
        raise MaskError(
            "The source holds no mask: no key of a known format, no values of 0 and 1, no weight with zeros."
        )
    logger.info("masks are the zeros of %d weights of %d tensors", len(masks), len(tensors))
    return masks
