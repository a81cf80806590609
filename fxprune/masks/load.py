"""`load_masks`: the masks of any source that is in use become bool tensors by parameter name; `save_masks` writes ours.

Nothing here runs code from a file, and polarity is told, never guessed.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fxprune.errors import MaskError
from fxprune.masks.files import read_source
from fxprune.masks.interpret import collect, fit
from fxprune.masks.keys import strip_prefixes
from fxprune.masks.names import find_weights
from fxprune.masks.nested import unpack_bitmasks, unwrap
from fxprune.masks.resolve import resolve_masks

logger = logging.getLogger(__name__)

Model = nn.Module | ExportedProgram | fx.GraphModule
Source = nn.Module | Mapping[str, object] | Sequence[object] | str | os.PathLike[str]

CONVENTIONS = ("keep", "prune")
"""What 1 or True means."""

METADATA = {"fxprune.schema": "1", "convention": "keep"}
"""Metadata of our own files."""


def load_masks(
    source: Source,
    *,
    model: Model | None = None,
    convention: str = "keep",
    threshold: float | None = None,
    trusted: bool = False,
) -> dict[str, Tensor]:
    """Return the masks of a file, a folder, a mapping or a module.

    Understood are masks of torch.nn.utils.prune, torch.ao.pruning, open_lth, Structure-LTH, sparse_learning and ITOP,
    rigl-torch, NNI, SparseML and llm-compressor, compressed-tensors, apex, ModelOpt, NNCF, Lightning, sparse tensors,
    plain mappings of masks, and, where there are no masks, the zeros of saved weights.

    Args:
        source: A module that carries masks; a mapping, also nested or a checkpoint; a list in layer order; or the path
            of a `.pt`, `.pth`, `.tar`, `.ckpt`, `.bin`, `.safetensors` or `.npz` file, or of a folder with such files.
        model: The model that the masks belong to: names and shapes are checked, wrappers' prefixes come off, masks of
            output channels are expanded.
        convention: What 1 or True means: "keep" or "prune".
        threshold: The values are scores: those above it are kept. None: values have to be 0 or 1.
        trusted: Read pickles that can run code. Only for files that you made.

    Returns:
        Parameter name to mask: bool, True = kept. A parameter without a mask is dense.

    Raises:
        MaskError: The source cannot be read safely, holds no mask, or holds one that does not fit; all that is wrong
            with its masks is in one error.
        UnsupportedError: The model is of another type.
    """
    if convention not in CONVENTIONS:
        raise MaskError(f"convention is {convention!r}; it needs to be 'keep' (1 = kept) or 'prune' (1 = pruned).")
    if isinstance(source, nn.Module):
        return _load_attached(source, model)
    found: object = source
    if isinstance(source, (str, os.PathLike)):
        found = read_source(Path(source), trusted=trusted)
    elif isinstance(source, (Tensor, np.ndarray)):
        raise MaskError("source is one tensor; give a mapping of parameter names to masks.")
    flat = unwrap(found, model if isinstance(model, nn.Module) else None)
    bits = unpack_bitmasks(flat)
    masks = collect(bits or flat, keep=convention == "keep", threshold=threshold, model=model)
    known = None if model is None else set(find_weights(model).tensors)
    names = strip_prefixes(list(masks), known)
    if len(set(names.values())) < len(names):
        raise MaskError("Two masks of the source have one name once their prefixes are off; give one of them.")
    renamed = {names[key]: mask for key, mask in masks.items()}
    logger.info(
        "%d masks read from %s", len(renamed), source if isinstance(source, (str, os.PathLike)) else "a mapping"
    )
    return renamed if model is None else resolve_masks(model, fit(renamed, model))


def open_masks(model: Model, masks: Mapping[str, object] | str | os.PathLike[str] | None) -> dict[str, Tensor]:
    """Return the masks of a model from what `compile` takes: a path is loaded, everything else is checked.

    Args:
        model: The model that the masks belong to.
        masks: A mapping, a path, or None.
    """
    if isinstance(masks, (str, os.PathLike)):
        return load_masks(masks, model=model)
    return resolve_masks(model, masks)


def _load_attached(source: nn.Module, model: Model | None) -> dict[str, Tensor]:
    """Return the masks in the buffers of a module; without any, those of its zeros."""
    target = source if model is None else model
    stored: dict[str, object] = {
        **dict(source.named_parameters(remove_duplicate=False)),
        **dict(source.named_buffers(remove_duplicate=False)),
    }
    masks = collect(stored, keep=True, threshold=None, model=target, only_marked=True)
    if not masks:
        return resolve_masks(target, None)
    names = strip_prefixes(list(masks), set(find_weights(target).tensors))
    return resolve_masks(target, fit({names[key]: mask for key, mask in masks.items()}, target))


def save_masks(path: str | os.PathLike[str], masks: Mapping[str, Tensor]) -> None:
    """Write masks as safetensors of bool tensors, at once or not at all.

    Args:
        path: Where to; the name ends in `.safetensors`.
        masks: Parameter name to mask, bool, True = kept.

    Raises:
        MaskError: There is no mask, one of them is not bool, or the name ends otherwise.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise MaskError(f"{str(target)!r} has to end in .safetensors, the form of the file.")
    wrong = [name for name, mask in masks.items() if not isinstance(mask, Tensor) or mask.dtype != torch.bool]
    if wrong or not masks:
        raise MaskError(f"masks[{wrong[0]!r}] is no bool tensor." if wrong else "masks is empty: no mask to save.")
    plain = {name: mask.detach().cpu().contiguous().clone() for name, mask in masks.items()}
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".masks") as folder:
        part = Path(folder) / target.name
        save_file(plain, part, metadata=METADATA)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(target)
