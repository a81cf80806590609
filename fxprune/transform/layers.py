"""From a model and its masks to the cells that the mathematics works on, and back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fxprune.errors import MaskError
from fxprune.masks import open_masks
from fxprune.masks.names import find_weights
from fxprune.nodes import bind
from fxprune.structure.cells import Cells, Changed
from fxprune.structure.families import name_family
from fxprune.transform.change import ChangedMasks, measure_change

Model = nn.Module | ExportedProgram | fx.GraphModule
Masks = Mapping[str, object] | str | os.PathLike[str] | None

TRANSPOSED_REASON = "a transposed convolution: the rows of its weight are not its output channels."

_CONVOLUTIONS = (nn.modules.conv._ConvNd,)


@dataclass(frozen=True)
class Geometry:
    """What the shape of a weight does not say.

    Attributes:
        conv_groups: Conv groups.
        transposed: Whether the first axis of the weight is the input channels.
    """

    conv_groups: int = 1
    transposed: bool = False


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model's masks, ready to be changed.

    Attributes:
        weights: Values of each masked weight.
        masks: The masks as they are.
        cells: The 2-D views of those that can be changed, in the order of the masks.
        obstacles: Why the others cannot.
    """

    weights: dict[str, Tensor]
    masks: dict[str, Tensor]
    cells: dict[str, Cells]
    obstacles: dict[str, str]

    def finish(self, change: Callable[[Sequence[Cells]], Sequence[Changed]]) -> ChangedMasks:
        """Change the masks and record what changed.

        Args:
            change: Refills or regroups layers.
        """
        done = dict(zip(self.cells, change(tuple(self.cells.values())), strict=True))
        masks, records = {}, []
        for name, before in self.masks.items():
            found = done.get(name) or Changed(_flatten(before), reason=self.obstacles[name], refused=True)
            masks[name] = torch.from_numpy(found.mask.copy()).reshape(before.shape)
            heights: dict[int, int] = {}
            for group in found.groups:
                heights[group.height] = heights.get(group.height, 0) + 1
            records.append(
                measure_change(
                    name,
                    self.weights[name],
                    before,
                    masks[name],
                    heights=heights,
                    reason=found.reason,
                    refused=found.refused,
                )
            )
        return ChangedMasks(masks, records)


def prepare(model: Model, masks: Masks, scores: Mapping[str, Tensor] | None) -> Prepared:
    """Check model, masks and scores and cut them into cells.

    Args:
        model: The model; only read.
        masks: Masks in any form that `compile` takes.
        scores: Score of each cell (the weight's shape) or of each row ([O]) by weight name; None: |w|.

    Raises:
        MaskError: A mask or a score does not fit the model.
    """
    kept = open_masks(model, masks)
    weights = find_weights(model).tensors
    values = {name: weights[name].detach() for name in kept}
    geometries = find_geometries(model)
    cells: dict[str, Cells] = {}
    obstacles: dict[str, str] = {}
    _check_names(scores, kept)
    for name, mask in kept.items():
        geometry = geometries.get(name, Geometry())
        if geometry.transposed:
            obstacles[name] = TRANSPOSED_REASON
            continue
        score = values[name] if scores is None else scores[name]
        cells[name] = make_cells(name, mask, score, geometry.conv_groups)
    return Prepared(values, kept, cells, obstacles)


def make_cells(name: str, mask: Tensor, scores: Tensor, conv_groups: int) -> Cells:
    """Return the 2-D view of one weight.

    Args:
        name: The weight's name, for the error.
        mask: Its mask, [O, I / groups, ...].
        scores: Score of each cell, of the mask's shape, or of each row, [O]; absolute values count.
        conv_groups: Conv groups.

    Raises:
        MaskError: The scores have another shape, or are not finite where the mask keeps a cell.
    """
    if scores.shape not in (mask.shape, mask.shape[:1]):
        raise MaskError(
            f"scores[{name!r}] have shape {list(scores.shape)}; give one for each cell, {list(mask.shape)}, or one for "
            f"each row, [{mask.shape[0]}]."
        )
    size = scores.detach().to("cpu", torch.float64).abs()
    size = torch.where(mask, size, 0.0) if size.shape == mask.shape else size
    if not bool(size.isfinite().all()):
        raise MaskError(f"scores[{name!r}] are not finite (NaN or infinity) for a kept cell; repair the weight.")
    flat = size.reshape(mask.shape[0], -1).numpy() if size.shape == mask.shape else size.numpy()
    return Cells(_flatten(mask), flat, conv_groups, int(np.prod(mask.shape[2:], dtype=np.int64)))


def _flatten(mask: Tensor) -> NDArray[np.bool_]:
    flat: NDArray[np.bool_] = mask.reshape(mask.shape[0], -1).numpy()
    return flat


def _check_names(scores: Mapping[str, Tensor] | None, masks: Mapping[str, Tensor]) -> None:
    missing = [name for name in masks if scores is not None and name not in scores]
    if missing:
        raise MaskError(
            f"scores has no {missing[0]!r}; it needs one tensor for each mask ({len(missing)} are missing)."
        )


def find_scores(model: Model, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what each cell of a masked weight is worth: the weight itself, whose absolute values count.

    Args:
        model: The user's model.
        masks: Its checked masks.
    """
    weights = find_weights(model).tensors
    return {name: weights[name].detach() for name in masks}


def find_families(model: Model, masks: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the structure of each mask in a sentence, e.g. "row groups of column vectors: ...".

    Args:
        model: The model; gives conv groups and orientation.
        masks: Checked masks.
    """
    geometries = find_geometries(model)
    families = {}
    for name, mask in masks.items():
        geometry = geometries.get(name, Geometry())
        if geometry.transposed:
            families[name] = "dense" if bool(mask.all()) else "not looked at: a transposed convolution"
            continue
        kernel = int(np.prod(mask.shape[2:], dtype=np.int64))
        families[name] = name_family(_flatten(mask), geometry.conv_groups, kernel)
    return families


def find_geometries(model: Model) -> dict[str, Geometry]:
    """Return conv groups and orientation of every convolution weight that is recognised, by its name."""
    found: dict[str, Geometry] = {}
    if isinstance(model, nn.Module):
        for path, module in model.named_modules(remove_duplicate=False):
            if isinstance(module, _CONVOLUTIONS):
                found[f"{path}.weight".lstrip(".")] = Geometry(module.groups, module.transposed)
    return found | dict(_read_graph(model))


def _read_graph(model: Model) -> Iterator[tuple[str, Geometry]]:
    """Yield the geometries of the convolutions that a graph calls."""
    if isinstance(model, ExportedProgram):
        names = dict(model.graph_signature.inputs_to_parameters)
        graph = model.graph
    elif isinstance(model, fx.GraphModule):
        names = {node.name: str(node.target) for node in model.graph.nodes if node.op == "get_attr"}
        graph = model.graph
    else:
        return
    for node in graph.nodes:
        operator = str(node.target).removeprefix("aten.").partition(".")[0]
        if node.op != "call_function" or "conv" not in operator or not isinstance(node.target, torch._ops.OpOverload):
            continue
        arguments = bind(node)
        weight = arguments.get("weight")
        if isinstance(weight, fx.Node) and weight.name in names:
            groups = arguments.get("groups", 1)
            transposed = bool(arguments.get("transposed", "transpose" in operator))
            yield names[weight.name], Geometry(groups if isinstance(groups, int) else 1, transposed)
