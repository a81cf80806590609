"""What was cut from every layer, in original numbering: enough to cut a later dense checkpoint in the same way."""

from __future__ import annotations

from dataclasses import dataclass


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
