"""Random masks of a wanted density: row groups, whole rows, or single cells."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fxprune import refill

BoolArray = NDArray[np.bool_]

STRUCTURES = ("rowgroup", "channel", "refill", "unstructured")
"""Kinds of mask: blocks of rows that share their columns; random whole rows; the whole rows that `fxprune.refill` makes
of random cells; cells without any structure."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class MaskedWeight:
    """A weight that gets a mask: rows of cells, some of which are pruned.

    Attributes:
        weight: The parameter; its first axis are the rows.
        groups: Groups of the convolution; their rows lie one group after the other.
    """

    weight: torch.Tensor
    groups: int = 1

    @property
    def is_depthwise(self) -> bool:
        """Whether every row reads a channel of its own."""
        return self.groups > 1 and self.weight.shape[1] == 1


def make_masks(
    model: nn.Module, structure: str, sparsity: float, seed: int, *, rows: int = 32, shuffle_rows: bool = False
) -> dict[str, torch.Tensor]:
    """Draw a mask for every weight that `find_masked_weights` names.

    Depthwise convolutions get an unstructured mask, whatever the structure: their rows share no column.

    Args:
        model: The model; only names and shapes are read.
        structure: One of `STRUCTURES`.
        sparsity: Share of weights that are pruned, in [0, 1); met in each layer as nearly as its shape allows.
        seed: Seed; the mask of a layer depends on it and on the place of the layer in the model.
        rows: Height of the row groups; only `rowgroup` reads it.
        shuffle_rows: Draw the rows of a group at random within their conv group instead of side by side.

    Returns:
        Bool masks by parameter name, True = kept, each with the shape of its weight.

    Raises:
        ValueError: An argument is out of range, or the model has no layer to mask.
    """
    _check_arguments(structure, sparsity, rows)
    masks: dict[str, torch.Tensor] = {}
    for index, (name, masked) in enumerate(find_masked_weights(model).items()):
        weight = masked.weight
        shape = (weight.shape[0], weight[0].numel())
        generator = np.random.default_rng([seed, index])
        kind = "unstructured" if masked.is_depthwise else structure
        if kind == "rowgroup":
            cells = _draw_row_groups(shape, masked.groups, 1.0 - sparsity, rows, shuffle_rows, generator)
        else:
            cells = _DRAW[kind](shape, 1.0 - sparsity, generator)
        masks[name] = torch.from_numpy(cells).reshape(weight.shape)
    if not masks:
        raise ValueError("the model has no convolution or linear layer besides its stem and its last linear layer")
    return dict(refill(model, masks)) if structure == "refill" else masks


def find_masked_weights(model: nn.Module) -> dict[str, MaskedWeight]:
    """Find the weights that get a mask, by parameter name: of all convolutions, linear layers and attentions but two.

    The stem, which is the first convolution, and the last linear layer, or the last convolution of a model without
    any, stay dense. All of a model without convolutions is masked: it is a part of a larger one.
    """
    kinds = (*_CONVOLUTIONS, nn.Linear, nn.MultiheadAttention)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    convolutions = [name for name, module in layers.items() if isinstance(module, _CONVOLUTIONS)]
    linears = [name for name, module in layers.items() if isinstance(module, nn.Linear)]
    dense = {convolutions[0], (linears or convolutions)[-1]} if convolutions else set()
    found: dict[str, MaskedWeight] = {}
    for name, module in layers.items():
        if name in dense:
            continue
        weight = "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"
        groups = module.groups if isinstance(module, _CONVOLUTIONS) else 1
        found[f"{name}.{weight}"] = MaskedWeight(module.get_parameter(weight), groups)
    return found


def apply_masks(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return a copy of the model with every mask multiplied into its weight; the model itself is not changed."""
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            masked.get_parameter(name).mul_(mask)
    return masked


def restore_scale(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
    """Divide every masked weight by the root of its density, in place.

    A pruned network that was trained keeps its signal. Random weights lose it layer by layer, until the output no
    longer depends on the input and a check of the output sees nothing.
    """
    with torch.no_grad():
        for name, mask in masks.items():
            density = int(mask.count_nonzero()) / mask.numel()
            if density > 0.0:
                model.get_parameter(name).div_(density**0.5)


def _check_arguments(structure: str, sparsity: float, rows: int) -> None:
    if structure not in STRUCTURES:
        raise ValueError(f"structure is {structure!r}; it must be one of {', '.join(STRUCTURES)}")
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity is {sparsity}; it must be at least 0 and below 1")
    if structure == "rowgroup" and rows < 1:
        raise ValueError(f"rows is {rows}; a row group needs at least one row")


def _draw_row_groups(
    shape: tuple[int, int], groups: int, density: float, rows: int, shuffle_rows: bool, generator: np.random.Generator
) -> BoolArray:
    """Draw [O, K] cells: blocks of `rows` rows inside one conv group share one random column list.

    What rounding takes from the column count of one block, the next block gets back.
    """
    cells = np.zeros(shape, dtype=bool)
    height = shape[0] // groups
    wanted = kept = 0.0
    for first in range(0, shape[0], height):
        order = generator.permutation(height) if shuffle_rows else np.arange(height)
        for start in range(0, height, rows):
            block = first + order[start : start + rows]
            wanted += density * shape[1] * block.size
            count = min(shape[1], max(0, round((wanted - kept) / block.size)))
            kept += count * block.size
            cells[np.ix_(block, generator.choice(shape[1], count, replace=False))] = True
    return cells


def _draw_channels(shape: tuple[int, int], density: float, generator: np.random.Generator) -> BoolArray:
    cells = np.zeros(shape, dtype=bool)
    cells[generator.choice(shape[0], round(density * shape[0]), replace=False)] = True
    return cells


def _draw_cells(shape: tuple[int, int], density: float, generator: np.random.Generator) -> BoolArray:
    size = shape[0] * shape[1]
    pruned = size - round(density * size)
    scores = generator.random(size, dtype=np.float32)
    if pruned == 0:
        return np.ones(shape, dtype=bool)
    kept: BoolArray = scores > np.partition(scores, pruned - 1)[pruned - 1]
    return kept.reshape(shape)


_DRAW: dict[str, Callable[[tuple[int, int], float, np.random.Generator], BoolArray]] = {
    "channel": _draw_channels,
    "refill": _draw_cells,
    "unstructured": _draw_cells,
}
