"""Put masks on the nodes that own a weight, and exact zeros into the weights."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from typing import cast

import torch
from torch import fx

from fxprune.annotation import META_KEY, WeightAnnotation
from fxprune.errors import MaskError
from fxprune.graph.program import NAMES_KEY, ModelNames
from fxprune.layer import Layer, find_layer
from fxprune.nodes import annotation_of, get_tensor, store_tensor

logger = logging.getLogger(__name__)


def annotate(
    gm: fx.GraphModule, masks: Mapping[str, torch.Tensor], scores: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Annotate every convolution and linear node, and multiply the masks into the weights.

    The weight becomes a new tensor with exact zeros where the mask is False, whatever stood there, NaN included; the
    user's tensor is not written to. A weight without a mask gets one that is True everywhere.

    Args:
        gm: A captured graph; changed in place.
        masks: Bool masks by parameter name, True = kept, each of its weight's shape.
        scores: For refill and regroup: what each cell of a masked weight is worth, by the name of its mask. Weights
            with scores keep their pruned values until the mask is final; only NaN and infinity among them become zero.

    Raises:
        MaskError: A mask belongs to no weight of the graph, differs from the mask of a tied weight, or keeps a weight
            that is not finite.
    """
    resolved = _resolve_names(gm, masks)
    pending = _name_scores(gm, scores or {}, resolved)
    constants = {str(node.target): node for node in gm.graph.nodes if node.op == "get_attr"}
    for name, mask in resolved.items():
        _apply_mask(gm, constants[name], mask, keep_pruned=name in pending)
    full: dict[str, torch.Tensor] = {}
    for node in gm.graph.nodes:
        layer = find_layer(node)
        if layer is None:
            continue
        name = str(layer.weight.target)
        if name not in resolved and name not in full:
            _check_finite(get_tensor(gm, layer.weight), name)
            full[name] = _mask_of_unmasked(gm, layer, name)
        mask = resolved[name] if name in resolved else full[name]
        node.meta[META_KEY] = WeightAnnotation(name, mask, scores=pending.get(name))


def _mask_of_unmasked(gm: fx.GraphModule, layer: Layer, name: str) -> torch.Tensor:
    """Return a mask that keeps everything; of a weight computed from a masked tensor, what is not zero."""
    names = cast("ModelNames", gm.meta[NAMES_KEY])
    if any(name in made for source, made in names.folded.items() if source in names.masked):
        return (get_tensor(gm, layer.weight) != 0).cpu()
    return torch.ones(layer.weight_shape, dtype=torch.bool)


def read_masks(gm: fx.GraphModule, masks: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the masks as the graph has them now, by the names under which they were given.

    Args:
        gm: An annotated graph whose weights have the shapes of the user's model.
        masks: The masks given to `annotate`; those of weights that the graph does not use are returned as they are.
    """
    names = cast("ModelNames", gm.meta[NAMES_KEY])
    found = {note.name: note.mask for note in map(annotation_of, gm.graph.nodes) if note is not None}
    return {name: found.get(names.aliases[name], mask) for name, mask in masks.items()}


def _name_scores(
    gm: fx.GraphModule, scores: Mapping[str, torch.Tensor], resolved: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the scores by the names that the graph uses, those of masked weights only."""
    names = cast("ModelNames", gm.meta[NAMES_KEY])
    renamed = {names.aliases.get(name, name): tensor for name, tensor in scores.items()}
    return {name: tensor for name, tensor in renamed.items() if name in resolved}


def _resolve_names(gm: fx.GraphModule, masks: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the masks by the names that the graph uses, those of unused weights left out."""
    names = cast("ModelNames", gm.meta[NAMES_KEY])
    used = {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}
    resolved: dict[str, torch.Tensor] = {}
    for name, mask in masks.items():
        canonical = names.aliases.get(name)
        if canonical is None:
            raise MaskError(f"Mask '{name}' belongs to no tensor of the model.{_suggest(name, used)}")
        if canonical in names.masked:
            continue
        _check_not_folded(name, names.folded.get(canonical, set()), mask)
        if canonical not in used:
            logger.debug("mask of '%s' left out: the model does not use that weight for these inputs", name)
            continue
        if canonical in resolved and not torch.equal(resolved[canonical], mask):
            raise MaskError(f"Mask '{name}' differs from the mask of '{canonical}', which is the same tensor.")
        resolved[canonical] = mask.detach().to(device="cpu", copy=True)
    return resolved


def _check_not_folded(name: str, made: set[str], mask: torch.Tensor) -> None:
    if made and not bool(mask.all()):
        raise MaskError(
            f"Mask '{name}': the model computes {', '.join(sorted(made))} from this tensor, so its zeros are not "
            "zeros of the weight that runs. Make the change permanent first (torch.nn.utils.prune.remove, "
            "torch.nn.utils.parametrize.remove_parametrizations)."
        )


def _suggest(name: str, used: set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(used), n=1)
    return f" Nearest name: '{near[0]}'." if near else " Use a name of model.named_parameters()."


def _apply_mask(gm: fx.GraphModule, node: fx.Node, mask: torch.Tensor, *, keep_pruned: bool) -> None:
    """Replace the constant by itself with exact zeros where the mask is False, or only where it is not finite there."""
    name = str(node.target)
    weight = get_tensor(gm, node)
    if mask.dtype != torch.bool or mask.shape != weight.shape:
        raise MaskError(
            f"Mask '{name}' is {mask.dtype} {list(mask.shape)}; it needs to be bool with the weight's shape "
            f"{list(weight.shape)}."
        )
    kept = mask.to(weight.device)
    if keep_pruned:
        kept = kept | weight.isfinite()
    masked = torch.where(kept, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))
    _check_finite(masked, name)
    store_tensor(gm, name, masked)


def _check_finite(weight: torch.Tensor, name: str) -> None:
    finite = torch.isfinite(weight)
    if not bool(finite.all()):
        count = int(finite.numel() - finite.count_nonzero())
        raise MaskError(
            f"Weight '{name}' has {count} values that are kept but not finite (NaN or infinity); "
            "prune them with a mask or repair the checkpoint."
        )
