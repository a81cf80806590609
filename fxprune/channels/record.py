"""What was cut from every layer, in original numbering: enough to cut a later dense checkpoint in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import cast

from torch import fx

from fxprune.errors import ArtifactError
from fxprune.layer import Layer

CUTS_KEY = "fxprune_channel_cuts"
"""The key of `gm.meta` under which the elimination leaves one tuple of `LayerCut` a round."""


STATISTICS = "statistics"
"""Where constants went that a normalisation before the layer reads: into its statistics and two columns."""


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
        folded: Where the constants of lost input channels went: "bias", "table" (they differ over space),
            "statistics" (of the normalisation before it; the carriers stand for its two columns), or "".
        biased: Whether the cut layer has a bias.
    """

    layer: str
    weight: str
    rows: tuple[int, ...]
    channels: tuple[int, ...]
    out_channels: int
    in_channels: int
    carriers: tuple[int, ...] = ()
    folded: str = ""
    biased: bool = False


def whole_cut(layer: Layer) -> LayerCut:
    """Return the record of a layer of which nothing was cut."""
    transposed = layer.kind == "conv_transpose"
    inputs = layer.weight_shape[0] if transposed else layer.weight_shape[1] * layer.groups
    return LayerCut(
        layer=layer.node.name,
        weight=str(layer.weight.target),
        rows=tuple(range(layer.out_channels)),
        channels=tuple(range(inputs)),
        out_channels=layer.out_channels,
        in_channels=inputs,
        biased=layer.bias is not None,
    )


def compose_cuts(gm: fx.GraphModule) -> tuple[LayerCut, ...]:
    """Return what was cut from every layer in all rounds together, in original numbering.

    Layers that stayed whole are not in it.

    Args:
        gm: A graph whose channels were eliminated, or any other.
    """
    return tuple(cut for cut in compose_all(gm).values() if not _is_whole(cut))


def compose_all(gm: fx.GraphModule) -> dict[str, LayerCut]:
    """Return the same for every layer that is left, by the name of its node; nothing before the first round."""
    found: dict[str, LayerCut] = {}
    for cuts in cast("list[tuple[LayerCut, ...]]", gm.meta.get(CUTS_KEY, [])):
        found = {cut.layer: _after(found[cut.layer], cut) if cut.layer in found else cut for cut in cuts}
    return found


def read_cuts(channels: Sequence[Mapping[str, object]]) -> tuple[LayerCut, ...]:
    """Return a record from the form in which a report holds it, or from what is left of that after JSON.

    Raises:
        ArtifactError: It has other fields.
    """
    known = {field.name for field in fields(LayerCut)}
    found: list[LayerCut] = []
    for item in channels:
        if not isinstance(item, Mapping) or set(item) != known:
            given = ", ".join(sorted(map(str, item))) if isinstance(item, Mapping) else type(item).__name__
            raise ArtifactError(
                f"Entry {len(found)} of the record of channels has {given}; it needs {', '.join(sorted(known))}. "
                "Pass `report.channels` of a compiled model, or json.loads of its JSON."
            )
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in item.items()}
        found.append(LayerCut(**values))  # type: ignore[arg-type]  # the names are checked, the types are those written
    return tuple(found)


def _after(first: LayerCut, second: LayerCut) -> LayerCut:
    """Return two cuts of one layer as one; the second is numbered in what the first left."""
    return replace(
        first,
        rows=tuple(first.rows[row] for row in second.rows),
        channels=tuple(first.channels[channel] for channel in second.channels),
        carriers=first.carriers + tuple(first.channels[channel] for channel in second.carriers),
        biased=second.biased,
        folded=", ".join(dict.fromkeys(part for part in (first.folded, second.folded) if part)),
    )


def _is_whole(cut: LayerCut) -> bool:
    return len(cut.rows) == cut.out_channels and len(cut.channels) == cut.in_channels
