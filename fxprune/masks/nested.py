"""Masks inside something: a checkpoint with members, a sparsifier's state, a mapping of layers, a list of layers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from fxprune.errors import MaskError

logger = logging.getLogger(__name__)

MEMBERS = ("masks", "mask", "sparsifier", "state_dict", "model_state_dict", "model", "net", "module")
"""Names under which checkpoints keep what holds the masks, most telling first."""

LAYER_LIST = "backward_masks"
"""Where the scheduler of rigl-torch keeps its masks: a list in layer order."""

MOST_LEVELS = 2
"""Levels of members that are looked into."""

_TARGETS = ("weight", "bias")
_IGNORED_TARGETS = ("_input_", "_output_")


def unwrap(found: object, model: nn.Module | None) -> dict[str, object]:
    """Return the flat mapping of keys to values that holds the masks.

    Args:
        found: What the user gave or what stood in a file.
        model: Gives the names of the layers of a list.

    Raises:
        MaskError: There is no mapping in it, or it is a whole module.
    """
    for _ in range(MOST_LEVELS + 1):
        if isinstance(found, nn.Module):
            raise MaskError("The file holds a whole module; save its state_dict() or a plain dict of masks instead.")
        if isinstance(found, Mapping) and LAYER_LIST in found:
            found = found[LAYER_LIST]
        if isinstance(found, Sequence) and not isinstance(found, (str, bytes)):
            return _name_list(found, model)
        if not isinstance(found, Mapping):
            raise MaskError(f"Found a {type(found).__name__} where masks should be; give a mapping of names to masks.")
        if _is_sparsifier_state(found):
            return {str(name): entry["mask"] for name, entry in found["state"].items() if "mask" in entry}
        if _is_by_layer(found):
            return _flatten_layers(found)
        member = next((name for name in MEMBERS if isinstance(found.get(name), (Mapping, list, tuple))), None)
        if member is None:
            break
        found = found[member]
    return {str(key): value for key, value in cast("Mapping[object, object]", found).items()}


def _is_sparsifier_state(found: Mapping[str, object]) -> bool:
    """Return whether this is the state of a sparsifier of torch.ao.pruning."""
    state = found.get("state")
    return isinstance(state, Mapping) and bool(state) and all(isinstance(entry, Mapping) for entry in state.values())


def _is_by_layer(found: Mapping[str, object]) -> bool:
    """Return whether this maps layers to their targets, as NNI does: {layer: {"weight": mask, "bias": mask}}."""
    entries = list(found.values())
    return bool(entries) and all(
        isinstance(entry, Mapping)
        and bool(entry)
        and set(entry) <= {*_TARGETS, *_IGNORED_TARGETS}
        and all(value is None or isinstance(value, Tensor) for value in entry.values())
        for entry in entries
    )


def _flatten_layers(found: Mapping[str, object]) -> dict[str, object]:
    flat: dict[str, object] = {}
    ignored = 0
    for layer, entry in found.items():
        for target, value in cast("Mapping[str, object]", entry).items():
            if target in _TARGETS:
                flat[f"{layer}.{target}"] = value
            else:
                ignored += value is not None
    if ignored:
        logger.info("%d masks of inputs and outputs are ignored; only weights carry masks", ignored)
    return flat


def _name_list(masks: Sequence[object], model: nn.Module | None) -> dict[str, object]:
    """Name the masks of a list after the model's layers: every module with a weight but batch norm, in order."""
    if model is None:
        raise MaskError("The masks are a list in layer order, without names; pass model= to name them.")
    layers = [
        f"{path}.weight".lstrip(".")
        for path, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor)
        and not isinstance(module, nn.modules.batchnorm._NormBase)
    ]
    if len(layers) != len(masks):
        raise MaskError(
            f"The list has {len(masks)} masks, the model {len(layers)} layers with a weight ({', '.join(layers[:3])}, "
            "...); it needs one entry for each, None for a dense layer."
        )
    return dict(zip(layers, masks, strict=True))


def unpack_bitmasks(flat: Mapping[str, object]) -> dict[str, object]:
    """Return the masks of compressed-tensors: bits, packed along the last axis, lowest bit first.

    Args:
        flat: Keys `P.bitmask` and `P.shape`, where P is a module or the name of its weight; other keys are left out.

    Raises:
        MaskError: A bitmask has no shape, or not the bits that its shape needs.
    """
    masks: dict[str, object] = {}
    for key, bits in flat.items():
        if not key.endswith(".bitmask"):
            continue
        name = key.removesuffix(".bitmask")
        shape = flat.get(f"{name}.shape")
        if not isinstance(bits, Tensor) or bits.dtype != torch.uint8 or not isinstance(shape, Tensor):
            raise MaskError(f"{key!r} needs to be uint8, with {name + '.shape'!r} beside it.")
        sizes = [int(size) for size in shape.flatten()]
        rows = bits.reshape(-1, bits.shape[-1]) if bits.numel() else bits.reshape(0, 0)
        width = sizes[-1] if sizes else 0
        if not sizes or min(sizes) < 1 or rows.numel() != torch.Size(sizes[:-1]).numel() * -(-width // 8):
            raise MaskError(f"{key!r} has {list(bits.shape)} bytes, which do not hold the bits of shape {sizes}.")
        cells = (rows[:, :, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        mask = cells.flatten(1)[:, :width].reshape(sizes).bool()
        masks[name if name.endswith(".weight") else f"{name}.weight"] = mask
    return masks
