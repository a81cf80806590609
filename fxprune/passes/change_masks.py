"""What refill and regroup share: from the masks on the nodes to cells, and from new cells to masks and zeros."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import fx

from fxprune.annotation import META_KEY, WeightAnnotation
from fxprune.errors import PostconditionError, PreconditionError
from fxprune.layer import Layer, find_layer
from fxprune.nodes import annotation_of, get_tensor, store_tensor
from fxprune.passes.base import PassResult, Refusal
from fxprune.structure.cells import Cells, Changed
from fxprune.transform.layers import TRANSPOSED_REASON, make_cells

logger = logging.getLogger(__name__)

Memo = dict[bytes, list[Changed]]
"""Results by what they were computed from: one pipeline serves several input shapes of one model."""

_Site = tuple[fx.Node, Layer, WeightAnnotation]


def check_pending(gm: fx.GraphModule, name: str) -> None:
    """Check that every layer is annotated, and that no mask to be changed has row groups already.

    Args:
        gm: The graph.
        name: The pass, for the message.

    Raises:
        PreconditionError: If not.
    """
    for node in gm.graph.nodes:
        if find_layer(node) is None:
            continue
        annotation = annotation_of(node)
        if annotation is None:
            raise PreconditionError(f"Node '{node.name}' has no annotation; run annotate() on the graph first.")
        if annotation.scores is not None and annotation.pattern is not None:
            raise PreconditionError(f"Node '{node.name}' has row groups already; run {name} before group_rows.")


def check_final(gm: fx.GraphModule) -> None:
    """Check that every mask is final.

    Raises:
        PostconditionError: If a mask still has scores.
    """
    for node in gm.graph.nodes:
        annotation = annotation_of(node)
        if annotation is not None and annotation.scores is not None:
            raise PostconditionError(f"Node '{node.name}' has a mask that is not final: its scores are still there.")


def change_masks(gm: fx.GraphModule, change: Callable[[Sequence[Cells]], list[Changed]], memo: Memo) -> PassResult:
    """Change every mask that has scores, and write the zeros of the new masks into the weights.

    Args:
        gm: An annotated graph; changed in place.
        change: Refills or regroups layers.
        memo: Results by what they were computed from; read and written.

    Returns:
        What was done; a layer whose mask stays as it was is a refusal.
    """
    sites = _find_sites(gm)
    cells: dict[str, Cells] = {}
    for _, layer, annotation in sites:
        if layer.kind != "conv_transpose" and annotation.name not in cells and annotation.scores is not None:
            cells[annotation.name] = make_cells(annotation.name, annotation.mask, annotation.scores, layer.groups)
    key = _digest(cells)
    if key not in memo:
        memo[key] = change(tuple(cells.values()))
    changed = dict(zip(cells, memo[key], strict=True))
    refusals = []
    for node, layer, annotation in sites:
        found = changed.get(annotation.name)
        if found is None or found.refused:
            reason = TRANSPOSED_REASON if found is None else found.reason
            refusals.append(Refusal(node.name, f"the mask stays as it is: {reason}"))
        elif found.reason is not None:
            logger.info("%s: %s", annotation.name, found.reason)
        mask = annotation.mask if found is None else torch.from_numpy(found.mask).reshape(annotation.mask.shape)
        _write(gm, node, layer, WeightAnnotation(annotation.name, mask))
    return PassResult(bool(sites), tuple(refusals))


def _find_sites(gm: fx.GraphModule) -> list[_Site]:
    sites = []
    for node in gm.graph.nodes:
        layer, annotation = find_layer(node), annotation_of(node)
        if layer is not None and annotation is not None and annotation.scores is not None:
            sites.append((node, layer, annotation))
    return sites


def _write(gm: fx.GraphModule, node: fx.Node, layer: Layer, annotation: WeightAnnotation) -> None:
    """Give a node its final mask and its weight the zeros; nodes that share the weight have the same mask."""
    weight = get_tensor(gm, layer.weight)
    zero = torch.zeros((), dtype=weight.dtype, device=weight.device)
    store_tensor(gm, str(layer.weight.target), torch.where(annotation.mask.to(weight.device), weight, zero))
    node.meta[META_KEY] = annotation


def _digest(cells: dict[str, Cells]) -> bytes:
    """Return a digest of everything that the result depends on."""
    digest = hashlib.blake2b(digest_size=16)
    for name, layer in cells.items():
        digest.update(f"{name} {layer.mask.shape} {layer.conv_groups} {layer.kernel}".encode())
        digest.update(np.packbits(layer.mask).tobytes())
        digest.update(np.ascontiguousarray(layer.scores).data)
    return digest.digest()
