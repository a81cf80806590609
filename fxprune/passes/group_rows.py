"""Give every masked layer the row groups that cover its mask at the least predicted cost.

Rewrite:
    nothing in the graph; on each convolution and linear node whose mask has density below 1
        WeightAnnotation(name, mask, pattern=None)  ->  WeightAnnotation(name, mask, pattern)
    where the pattern covers every kept weight, its row groups share columns and never cross a conv group.

Needs:
    annotations on all layers. Depthwise and transposed convolutions are refused.

Source:
    method.md, section 6, policy "cover"; the search is `fxprune.structure.cover`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from torch import fx

from fxprune.annotation import META_KEY, RowGroupPattern, WeightAnnotation
from fxprune.errors import PostconditionError, PreconditionError
from fxprune.layer import Layer, find_layer
from fxprune.nodes import annotation_of
from fxprune.passes.base import Pass, PassResult, Refusal
from fxprune.structure.cover import cover_rows
from fxprune.structure.tiles import Efficiency, check_efficiency

logger = logging.getLogger(__name__)

_Found = dict[tuple[bytes, tuple[int, ...], int, Efficiency], RowGroupPattern]


@dataclass(frozen=True)
class GroupRows(Pass):
    """Find the row groups of every masked layer.

    Attributes:
        efficiency: Pairs (tile height in rows, rate of the target's kernel as a share of the dense rate).
        narrow: The same for layers whose cells have 16 bits; empty: no other than `efficiency`.
    """

    efficiency: Efficiency
    narrow: Efficiency = ()
    preserves_output: ClassVar[bool] = True

    def requires(self, gm: fx.GraphModule) -> None:
        """Every layer is annotated and the efficiency table is in order."""
        try:
            check_efficiency(self.efficiency)
            check_efficiency(self.narrow or self.efficiency)
        except ValueError as error:
            raise PreconditionError(f"GroupRows: {error}. Pass the table of the target.") from error
        for node in gm.graph.nodes:
            if find_layer(node) is not None and annotation_of(node) is None:
                raise PreconditionError(f"Node '{node.name}' has no annotation; run annotate() on the graph first.")

    def apply(self, gm: fx.GraphModule) -> PassResult:
        """Attach a pattern to every masked layer."""
        modified = False
        refusals: list[Refusal] = []
        found: _Found = {}
        for node in gm.graph.nodes:
            layer, annotation = find_layer(node), annotation_of(node)
            if layer is None or annotation is None or annotation.density == 1:
                continue
            reason = find_obstacle(layer)
            if reason is not None:
                refusals.append(Refusal(node.name, reason))
                continue
            pattern = self._find_pattern(layer, annotation, found)
            if pattern == annotation.pattern:
                continue
            node.meta[META_KEY] = replace(annotation, pattern=pattern)
            logger.debug("%s: nnz %d, stored %d, heights %s", node, annotation.nnz, pattern.stored, pattern.heights())
            modified = True
        return PassResult(modified, tuple(refusals))

    def ensures(self, gm: fx.GraphModule) -> None:
        """Every masked layer that can be grouped has a pattern; that it covers the mask is a rule of `verify`."""
        for node in gm.graph.nodes:
            layer, annotation = find_layer(node), annotation_of(node)
            if layer is None or annotation is None or annotation.density == 1 or annotation.pattern is not None:
                continue
            if find_obstacle(layer) is None:
                raise PostconditionError(
                    f"Node '{node.name}' has a mask of density {annotation.density:.3f}, no groups."
                )

    def _find_pattern(self, layer: Layer, annotation: WeightAnnotation, found: _Found) -> RowGroupPattern:
        """Cover the mask of one layer; equal masks are covered once."""
        mask = annotation.mask.numpy().reshape(layer.out_channels, -1)
        is_narrow = layer.weight.meta["val"].dtype.itemsize == 2
        efficiency = self.narrow if is_narrow and self.narrow else self.efficiency
        key = (np.packbits(mask).tobytes(), mask.shape, layer.groups, efficiency)
        if key not in found:
            found[key] = cover_rows(mask, layer.groups, efficiency)
        return found[key]


def find_obstacle(layer: Layer) -> str | None:
    """Return why the rows of a layer cannot be grouped, or None.

    Args:
        layer: Any layer.

    Returns:
        A sentence, or None.
    """
    if layer.kind == "conv_transpose":
        return "a transposed convolution stays dense: there is no row-group kernel for it."
    if layer.groups > 1 and layer.groups == layer.out_channels:
        return f"depthwise, {layer.groups} conv groups of one row: no two rows share an input channel."
    return None
