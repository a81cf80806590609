"""Check the masks of one call and bring them into the one form that the compiler uses.

Every mistake is found here, before any work, and all mistakes of one call are reported in one error.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fxprune.errors import MaskError, UnsupportedError
from fxprune.masks.names import Weights, find_name, find_weights
from fxprune.masks.values import convert_mask

logger = logging.getLogger(__name__)

MOST_PROBLEMS = 10
"""As many mistakes are spelled out in one error; the rest are counted."""


def resolve_masks(
    model: nn.Module | ExportedProgram | fx.GraphModule, masks: Mapping[str, object] | None
) -> dict[str, Tensor]:
    """Return the masks of a model as bool tensors.

    A mask decides which weights exist, whatever their value: a zero under True stays kept. Where a weight carries a
    mask of `torch.nn.utils.prune` too, only what both masks keep is kept, for the model itself multiplies by that one.

    Args:
        model: The model that the masks belong to. It is only read.
        masks: Name to mask. A name is that of the parameter without pruning machinery ("layer1.0.conv1.weight") or of
            its module ("layer1.0.conv1"). A mask is a torch tensor or NumPy array of the weight's shape that holds only
            0 and 1 (bool, integer or float; 1 = kept), or a sparse torch tensor, whose stored positions are kept.
            None takes the masks that `torch.nn.utils.prune` left on the model and, for every other convolution and
            linear layer, keeps the weights that are not zero.

    Returns:
        Name to mask: bool, True = kept, on the CPU, the weight's shape, sharing no memory with the argument.

    Raises:
        MaskError: If a mask fits no weight or holds anything but 0 and 1, or if the mapping is empty.
        UnsupportedError: If the model is of another type or has no readable weights.
    """
    weights = find_weights(model)
    kept = _collect_masks(weights.attached, weights)
    if masks is None:
        kept |= {name: _keep_nonzero(name, weights.tensors[name]) for name in weights.layers if name not in kept}
    else:
        for name, mask in _collect_masks(_check_mapping(masks), weights).items():
            kept[name] = mask & kept[name] if name in kept else mask
    logger.debug("masks of %d weights", len(kept))
    return kept


def _check_mapping(masks: object) -> Mapping[str, object]:
    if not isinstance(masks, Mapping):
        raise MaskError(
            f"masks is of type {type(masks).__name__}; it must map names to masks, e.g. {{'conv1.weight': mask}}, "
            "or be None to take the zeros of the weights as pruned."
        )
    if not masks:
        raise MaskError("masks is empty: no mask given. Pass None to take the zeros of the weights as pruned.")
    return masks


def _collect_masks(masks: Mapping[str, object], weights: Weights) -> dict[str, Tensor]:
    """Check and convert every mask; raise one error with all that is wrong."""
    kept: dict[str, Tensor] = {}
    problems: list[str] = []
    for key, value in masks.items():
        try:
            name = find_name(key, weights)
            mask = convert_mask(value, weights.tensors[name])
            _check_once(name, mask, kept, weights)
            kept[name] = mask
        except MaskError as error:
            problems.append(f"masks[{key!r}] {error}.")
    if len(problems) == 1:
        raise MaskError(problems[0])
    if problems:
        more = [f"and {len(problems) - MOST_PROBLEMS} more."] if len(problems) > MOST_PROBLEMS else []
        lines = [f"{len(problems)} masks do not fit the model:", *problems[:MOST_PROBLEMS], *more]
        raise MaskError("\n- ".join(lines))
    return kept


def _check_once(name: str, mask: Tensor, kept: Mapping[str, Tensor], weights: Weights) -> None:
    """Refuse a second mask for the same weight under the same name, and a different one under a tied name."""
    if name in kept:
        raise MaskError(f"is a second mask for the weight {name!r}; give one of them")
    for other, earlier in kept.items():
        if weights.tensors[other] is weights.tensors[name] and not torch.equal(earlier, mask):
            raise MaskError(f"differs from the mask of {other!r}, which is the same parameter; give both the same mask")


def _keep_nonzero(name: str, weight: Tensor) -> Tensor:
    if weight.device.type == "meta":
        raise UnsupportedError(
            f"The weight {name!r} is on the meta device and holds no values whose zeros could be a mask. "
            "Load the weights of the model first."
        )
    return (weight.detach() != 0).cpu()


def kept_weight_shares(
    model: nn.Module | ExportedProgram | fx.GraphModule, masks: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return the share of each weight's sum of absolute values that its mask keeps, in [0, 1]; 1 if the sum is 0.

    Args:
        model: The model; only read.
        masks: Checked masks, as `resolve_masks` returns them.
    """
    shares: dict[str, float] = {}
    for name, weight in find_weights(model).tensors.items():
        if name in masks:
            size = weight.detach().abs().double()
            whole = float(size.sum())
            shares[name] = float(size[masks[name]].sum()) / whole if whole > 0 else 1.0
    return shares
