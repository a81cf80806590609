"""The kinds of mask of the matrix. Each draws masks for a model, or says that it does not apply to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
from torch import nn

from benchmarks.zoo.models import Problem

Masks = dict[str, torch.Tensor]
Generator = np.random.Generator

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}
_SHORTCUTS = ("downsample", "proj", "project", "branch1")
"""Children of residual blocks that belong to the trunk."""
_BLOCKS = (
    *("BasicBlock", "Bottleneck", "ResBottleneckBlock", "CNBlock"),
    *("InvertedResidual", "_InvertedResidual", "MBConv", "FusedMBConv"),
    *("EncoderBlock", "SwinTransformerBlock", "SwinTransformerBlockV2", "PartitionAttentionLayer", "MultiscaleBlock"),
    *("BertBlock", "LlamaBlock", "C2fBottleneck", "ResidualBlock", "_DenseLayer"),
)
"""Blocks whose branch is added to the trunk, or joined to it as a whole."""
_JOINTS = (
    *("Fire", "Inception", "SepInceptionBlock3D", "UpJoin"),
    *("InceptionA", "InceptionB", "InceptionC", "InceptionD", "InceptionE"),
)
"""Blocks that join branches by a concat; the last branch dies."""
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


class NotApplicableError(Exception):
    """The model has nothing that this kind of mask could be drawn for."""


def draw_masks(kind: str, problem: Problem, seed: int = 0) -> Masks:
    """Draw the masks of a kind; "gamma" writes zeros into the scales of norms instead and returns no mask.

    Raises:
        NotApplicableError: The model has no such layers.
    """
    return KINDS[kind](problem, np.random.default_rng(seed))


def apply_masks(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
    """Multiply masks into the model's own weights: the reference."""
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)


def find_weights(problem: Problem) -> Iterator[tuple[str, torch.Tensor, nn.Module]]:
    """Yield name, weight and owner of all conv and linear weights but those of the output layers."""
    for path, module in problem.model.named_modules():
        if path in problem.outputs:
            continue
        names = _ATTENTION if isinstance(module, nn.MultiheadAttention) else ("weight",)
        if isinstance(module, (*_LAYERS, nn.MultiheadAttention)):
            for name in names:
                weight = getattr(module, name, None)
                if weight is not None:
                    yield f"{path}.{name}".lstrip("."), weight, module


def _row_mask(weight: torch.Tensor, owner: nn.Module, dead: torch.Tensor) -> torch.Tensor:
    """Return a mask that lacks some output channels."""
    mask = torch.ones(weight.shape, dtype=torch.bool)
    if not isinstance(owner, nn.modules.conv._ConvTransposeNd):
        mask[dead] = False
        return mask
    inputs, width = weight.shape[0] // owner.groups, weight.shape[1]
    for row in dead.tolist():
        group = row // width
        mask[group * inputs : (group + 1) * inputs, row % width] = False
    return mask


def _choose(count: int, share: float, generator: Generator) -> torch.Tensor:
    """Return a share of `count` indices, never all of them."""
    return torch.from_numpy(generator.permutation(count)[: min(round(share * count), count - 1)])


def _rows_of(weight: torch.Tensor, owner: nn.Module) -> int:
    if isinstance(owner, nn.modules.conv._ConvTransposeNd):
        return int(owner.out_channels)
    return int(weight.shape[0])


def _random_filters(share: float, problem: Problem, generator: Generator) -> Masks:
    masks = {
        name: _row_mask(weight, owner, _choose(_rows_of(weight, owner), share, generator))
        for name, weight, owner in find_weights(problem)
    }
    for path, module in problem.model.named_modules():
        if isinstance(module, nn.RNNBase):
            masks |= _dead_units(path, module, share, generator)
    return masks


def _dead_units(path: str, module: nn.RNNBase, share: float, generator: Generator) -> Masks:
    """Return masks without some hidden units of every layer, whose biases become zero as well."""
    gates, masks = _GATES[type(module)], {}
    for suffix in {name.removeprefix("weight_ih_") for name, _ in module.named_parameters() if "weight_ih" in name}:
        dead = _choose(module.hidden_size, share, generator)
        rows = (torch.arange(gates)[:, None] * module.hidden_size + dead).reshape(-1)
        for part in ("ih", "hh"):
            mask = torch.ones(module.get_parameter(f"weight_{part}_{suffix}").shape, dtype=torch.bool)
            mask[rows] = False
            masks[f"{path}.weight_{part}_{suffix}"] = mask
            with torch.no_grad():
                module.get_parameter(f"bias_{part}_{suffix}")[rows] = 0
    return masks


def _random_inputs(share: float, problem: Problem, generator: Generator) -> Masks:
    masks = {}
    for name, weight, owner in find_weights(problem):
        axis = 0 if isinstance(owner, nn.modules.conv._ConvTransposeNd) else 1
        mask = torch.ones(weight.shape, dtype=torch.bool)
        mask.index_fill_(axis, _choose(weight.shape[axis], share, generator), value=False)
        masks[name] = mask
    return masks


def _whole_layer(problem: Problem, generator: Generator) -> Masks:
    name, weight, _ = list(find_weights(problem))[int(generator.integers(len(list(find_weights(problem)))))]
    return {name: torch.zeros(weight.shape, dtype=torch.bool)}


def _whole_branch(problem: Problem, generator: Generator) -> Masks:
    """Return masks that leave nothing of one residual branch, or of one operand of a concat."""
    blocks = [
        (path, module)
        for path, module in problem.model.named_modules()
        if type(module).__name__ in (*_BLOCKS, *_JOINTS) and getattr(module, "use_res_connect", True)
    ]
    if not blocks:
        raise NotApplicableError("no residual block and no concat")
    path, block = blocks[int(generator.integers(len(blocks)))]
    children = [
        name
        for name, child in block.named_children()
        if name not in _SHORTCUTS and next(child.parameters(), None) is not None
    ]
    if type(block).__name__ in _JOINTS:
        children = children[-1:]
    prefixes = tuple(f"{path}.{name}." for name in children)
    return {
        name: torch.zeros(weight.shape, dtype=torch.bool)
        for name, weight, _ in find_weights(problem)
        if name.startswith(prefixes)
    }


def _zero_scales(problem: Problem, generator: Generator) -> Masks:
    """Set 30 % of the scales of every norm to zero; the shifts stay."""
    found = False
    for module in problem.model.modules():
        scale = module.weight if isinstance(module, _NORMS) else None
        if isinstance(scale, torch.Tensor):
            found = True
            with torch.no_grad():
                scale[_choose(scale.numel(), 0.3, generator)] = 0
    if not found:
        raise NotApplicableError("no normalisation with a scale")
    return {}


def _cells(share: float, problem: Problem, generator: Generator) -> Masks:
    return {
        name: torch.from_numpy(generator.random(tuple(weight.shape), dtype=np.float32) >= share)
        for name, weight, _ in find_weights(problem)
    }


KINDS: dict[str, Callable[[Problem, Generator], Masks]] = {
    "filters30": partial(_random_filters, 0.3),
    "filters50": partial(_random_filters, 0.5),
    "filters80": partial(_random_filters, 0.8),
    "inputs30": partial(_random_inputs, 0.3),
    "layer": _whole_layer,
    "branch": _whole_branch,
    "gamma": _zero_scales,
    "unstructured95": partial(_cells, 0.95),
}
"""Name to the function that draws the masks."""
