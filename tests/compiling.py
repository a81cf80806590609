"""Compile a network and hold its result against the masked model in float64: what the tests of `compile` share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Protocol

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

import fxprune
from fxprune import CompiledModule
from fxprune.codegen.pixel_schedules import pixels_candidates
from fxprune.codegen.row_schedules import rows_candidates
from fxprune.codegen.schedules import Candidate
from fxprune.codegen.workload import ConvShape
from tests.networks import apply_masks

TOLERANCE = 1e-5
"""Largest difference that counts as exact, as a share of the largest output."""

QUICK = {"measure": False}
"""Choose kernels by the cost model."""

_WEIGHTS = (nn.modules.conv._ConvNd, nn.Linear)


class Layers(Protocol):
    """A network seen by the function that connects its layers."""

    def __getattr__(self, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return a layer."""


Masks = dict[str, torch.Tensor]
IsRows = Callable[[ConvShape], bool]
Mask = Callable[[torch.Tensor, int], torch.Tensor]


def row_groups(height: int, density: float = 0.3) -> Mask:
    """Blocks of `height` rows share random columns."""

    def draw(weight: torch.Tensor, groups: int) -> torch.Tensor:
        rows, columns = weight.shape[0], weight[0].numel()
        blocks = torch.rand(groups, -(-rows // groups // height), columns) < density
        inside = blocks.repeat_interleave(height, dim=1)[:, : rows // groups]
        return inside.reshape(weight.shape)

    return draw


def shuffled(inner: Mask) -> Mask:
    """Spread the rows of another mask at random within their conv group."""

    def draw(weight: torch.Tensor, groups: int) -> torch.Tensor:
        cells = inner(weight, groups).reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        return torch.stack([part[torch.randperm(part.shape[0])] for part in cells]).reshape(weight.shape)

    return draw


def cells(density: float) -> Mask:
    """Cells without any structure."""
    return lambda weight, _: torch.rand(weight.shape) < density


def channels(weight: torch.Tensor, _: int) -> torch.Tensor:
    """Every second output channel."""
    kept = torch.zeros(weight.shape, dtype=torch.bool)
    kept[::2] = True
    return kept


def nothing(weight: torch.Tensor, _: int) -> torch.Tensor:
    """No weight at all."""
    return torch.zeros(weight.shape, dtype=torch.bool)


def everything(weight: torch.Tensor, _: int) -> torch.Tensor:
    """Every weight."""
    return torch.ones(weight.shape, dtype=torch.bool)


MASKS: dict[str, Mask] = {
    "groups of 32": row_groups(32),
    "cells, half": cells(0.5),
    "groups of 8": row_groups(8),
    "channels": channels,
    "shuffled groups of 16": shuffled(row_groups(16)),
    "cells, a tenth": cells(0.1),
    "groups of 12": row_groups(12),
    "all kept": everything,
    "all pruned": nothing,
}


def draw_masks(model: nn.Module, *kinds: Mask) -> Masks:
    """Return a mask for every convolution and linear layer, the kinds in turn."""
    owners = [(name, module) for name, module in model.named_modules() if isinstance(module, _WEIGHTS)]
    masks: Masks = {}
    for index, (name, module) in enumerate(owners):
        groups = module.groups if isinstance(module, nn.modules.conv._ConvNd) and not module.transposed else 1
        masks[f"{name}.weight".lstrip(".")] = kinds[index % len(kinds)](module.weight, groups)
    return masks


def to_double(value: object) -> object:
    """Return floating tensors in float64 and everything else as it is."""
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def run_masked(model: nn.Module, masks: Mapping[str, torch.Tensor], *inputs: object, **options: object) -> object:
    """Run the masked model on torch in float64."""
    masked = apply_masks(copy.deepcopy(model), masks).double()
    with torch.no_grad():
        return masked(*tree_map(to_double, inputs), **tree_map(to_double, options))


def largest_difference(found: object, expected: object) -> float:
    """Return the largest difference of all tensors as a share of the largest value of each."""
    leaves = list(zip(tree_leaves(found), tree_leaves(expected), strict=True))
    pairs = [pair for pair in leaves if isinstance(pair[1], torch.Tensor)]
    assert all(ours == theirs for ours, theirs in leaves if not isinstance(theirs, torch.Tensor))
    assert all(ours.shape == theirs.shape for ours, theirs in pairs)
    assert all(bool(ours.isfinite().all()) for ours, _ in pairs)
    scales = [max(float(theirs.abs().max()), 1e-30) for _, theirs in pairs]
    return max(float((ours - theirs).abs().max()) / scale for (ours, theirs), scale in zip(pairs, scales, strict=True))


def check(model: nn.Module, masks: Mapping[str, torch.Tensor], *inputs: object) -> CompiledModule:
    """Compile, run twice, compare with the masked model; the first result survives the second call."""
    compiled = fxprune.compile(model, masks, example_inputs=inputs, options=QUICK)
    expected = run_masked(model, masks, *inputs)
    first = compiled(*inputs)
    kept = tree_map(torch.clone, first)
    compiled(*tree_map(lambda value: value + 1 if value.is_floating_point() else value, inputs))
    assert all(torch.equal(ours, before) for ours, before in zip(tree_leaves(first), tree_leaves(kept), strict=True))
    assert largest_difference(first, expected) <= TOLERANCE, str(compiled.report)
    return compiled


def kernels(compiled: CompiledModule) -> list[str]:
    """Return the names of the layers that a kernel runs."""
    return [layer.name for layer in compiled.report.layers if not layer.kernel.startswith("dense")]


def force_kernels(monkeypatch: pytest.MonkeyPatch, *families: str) -> None:
    """Let dense torch look slow, and only these kernels ("rows", "pixels", "winograd") be there."""
    select = "fxprune.lowering.select"
    monkeypatch.setattr(f"{select}.predict_dense_us", lambda *_: 1e9)
    for family in {"rows", "pixels", "winograd"} - set(families):
        monkeypatch.setattr(f"{select}.{family}_candidates", lambda *_, **__: [])


def force_families(monkeypatch: pytest.MonkeyPatch, is_rows: IsRows) -> None:
    """Let layers be computed by the one family or the other; linear layers know only one."""
    force_kernels(monkeypatch, "rows", "pixels")

    def kept(find: Callable[..., Iterator[Candidate]], family: str) -> Callable[..., Iterator[Candidate]]:
        def candidates(work: object, *args: object, **options: object) -> Iterator[Candidate]:
            shape: ConvShape = work.shape  # type: ignore[attr-defined]
            is_linear = shape.batch == shape.spatial_in[1] == prod(shape.kernel) == 1
            if (family == "rows") == (is_linear or is_rows(shape)):
                yield from find(work, *args, **options)

        return candidates

    monkeypatch.setattr("fxprune.lowering.select.rows_candidates", kept(rows_candidates, "rows"))
    monkeypatch.setattr("fxprune.lowering.select.pixels_candidates", kept(pixels_candidates, "pixels"))
