"""What was cut from every layer, in original numbering: enough to cut a later dense checkpoint in the same way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from torch import fx

CUTS_KEY = "fxprune_channel_cuts"
"""The key of `gm.meta` under which the elimination leaves one tuple of `LayerCut` a round."""


@dataclass(frozen=True)
class LayerCut:
    """The cut of one layer.

    Attributes:
        layer: Name of its node.
        weight: Name of its weight.
        rows: Output channels that stay.
        channels: Input channels that stay (of all conv groups that stay).
        out_channels: Output channels before.
        in_channels: Input channels before.
        carriers: Dead input channels that stay and stand, with their constant, for all other dead ones.
        folded: Where the constants of lost input channels went: "bias", "table" (they differ over space), or "".
    """

    layer: str
    weight: str
    rows: tuple[int, ...]
    channels: tuple[int, ...]
    out_channels: int
    in_channels: int
    carriers: tuple[int, ...] = ()
    folded: str = ""


def compose_cuts(gm: fx.GraphModule) -> tuple[LayerCut, ...]:
    """Return what was cut from every layer in all rounds together, in original numbering.

    Layers that stayed whole are not in it.

    Args:
        gm: A graph whose channels were eliminated, or any other.
    """
    found: dict[str, LayerCut] = {}
    for cuts in cast("list[tuple[LayerCut, ...]]", gm.meta.get(CUTS_KEY, [])):
        found = {cut.layer: _after(found[cut.layer], cut) if cut.layer in found else cut for cut in cuts}
    return tuple(cut for cut in found.values() if not _is_whole(cut))


def _after(first: LayerCut, second: LayerCut) -> LayerCut:
    """Return two cuts of one layer as one; the second is numbered in what the first left."""
    return replace(
        first,
        rows=tuple(first.rows[row] for row in second.rows),
        channels=tuple(first.channels[channel] for channel in second.channels),
        carriers=first.carriers + tuple(first.channels[channel] for channel in second.carriers),
        folded=", ".join(dict.fromkeys(part for part in (first.folded, second.folded) if part)),
    )


def _is_whole(cut: LayerCut) -> bool:
    return len(cut.rows) == cut.out_channels and len(cut.channels) == cut.in_channels
