"""Which weights a lottery prunes, and masks of a wanted size over all of them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fxprune.errors import MaskError, TrainingError
from fxprune.masks.names import find_weights


def find_prunable(model: nn.Module, exclude: Sequence[str] | None = None) -> dict[str, torch.Size]:
    """Find the weights of convolutions and linear layers that are pruned.

    Args:
        model: The model; only names and shapes are read.
        exclude: Names of modules ("conv1") or weights ("conv1.weight") that stay dense. None: the first convolution and
            the last linear layer, as in the paper. An empty sequence: none.

    Returns:
        Shape by parameter name, in the order of the model.

    Raises:
        MaskError: `exclude` names no layer of the model, or nothing is left to prune.
    """
    weights = find_weights(model)
    shapes = {name: weights.tensors[name].shape for name in weights.layers}
    dense = _find_ends(model) if exclude is None else {_find_excluded(name, shapes) for name in exclude}
    left = {name: shape for name, shape in shapes.items() if name not in dense}
    if not left:
        raise MaskError(
            f"The model has {len(shapes)} convolution and linear weights and {len(dense)} of them stay dense; nothing "
            "is left to prune. Name the layers to keep with exclude=."
        )
    return left


def _find_ends(model: nn.Module) -> set[str]:
    """Return the weights of the first convolution and of the last linear layer."""
    modules = [(f"{path}.weight".lstrip("."), module) for path, module in model.named_modules()]
    convolutions = [name for name, module in modules if isinstance(module, nn.modules.conv._ConvNd)]
    linears = [name for name, module in modules if isinstance(module, nn.Linear)]
    return {*convolutions[:1], *linears[-1:]}


def _find_excluded(name: str, shapes: Mapping[str, torch.Size]) -> str:
    for meant in (name, f"{name}.weight"):
        if meant in shapes:
            return meant
    raise MaskError(f"exclude names {name!r}, which is no convolution or linear layer; there are {', '.join(shapes)}.")


def count_kept(cells: int, rate: float, rounds: int) -> int:
    """Return how many of `cells` weights are kept after so many rounds that each prune the share `rate`."""
    return round((1.0 - rate) ** rounds * cells)


def keep_largest(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Keep the `count` cells of largest score over all weights together; ties go to the first cell.

    Args:
        scores: Score of each cell by weight name; a cell with a score below zero is never kept.
        count: Number of kept cells.

    Returns:
        Bool masks of the same shapes.

    Raises:
        TrainingError: A score is not a number.
        MaskError: There are fewer candidates than `count`.
    """
    flat = np.concatenate([score.detach().cpu().to(torch.float64).reshape(-1).numpy() for score in scores.values()])
    if np.isnan(flat).any():
        raise TrainingError("A weight is not a number (NaN): the training diverged. Lower the learning rate.")
    if not 0 <= count <= int((flat >= 0).sum()):
        raise MaskError(f"{count} cells shall be kept; only {int((flat >= 0).sum())} of {flat.size} can be.")
    kept = torch.from_numpy(_keep_largest(flat, count))
    sizes = [score.numel() for score in scores.values()]
    parts = zip(scores.items(), torch.split(kept, sizes), strict=True)
    return {name: part.reshape(score.shape).clone() for (name, score), part in parts}


def _keep_largest(scores: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    if count == 0:
        return np.zeros(scores.shape, dtype=bool)
    least = np.partition(scores, scores.size - count)[scores.size - count]
    kept: NDArray[np.bool_] = scores > least
    ties = np.flatnonzero(scores == least)
    kept[ties[: count - int(kept.sum())]] = True
    return kept


def score_magnitudes(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return |w| of every kept cell and -1 of every other, so that a pruned cell never comes back."""
    return {name: torch.where(mask, state[name].detach().cpu().abs(), -1.0) for name, mask in masks.items()}


def draw_scores(shapes: Mapping[str, torch.Size], seed: int) -> dict[str, Tensor]:
    """Draw a score in [0, 1) for every cell: the control that prunes at random."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}


def measure_density(masks: Mapping[str, Tensor]) -> float:
    """Return kept cells over all cells of the masked weights."""
    return sum(int(mask.sum()) for mask in masks.values()) / max(1, sum(mask.numel() for mask in masks.values()))
