"""Packed projections: one linear layer whose rows are query, key and value behind a common view.

Rewrite:
    y = view(linear(x, w), [..., 3, E]);  q, k, v = y[..., 0, :], y[..., 1, :], y[..., 2, :]
        ->
    q = view(linear(x, w), [..., 3, E])[..., 0, :], and the same for k and v, each from a layer of its own

    In each copy only one third of the rows is used: the elimination that follows cuts the others, and the three parts
    can lose different channels. Done only where some row is dead, for one packed layer is faster than three.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import fx

from fxprune.channels.facts import Cells, Facts
from fxprune.channels.rules import MOVES
from fxprune.channels.rules.piece import PIECES, SPLITS
from fxprune.layer import find_layer
from fxprune.nodes import copy_meta


@dataclass(frozen=True, eq=False)
class PackedLayer:
    """A layer with the pieces that are taken of its result.

    Attributes:
        chain: The layer and the views behind it.
        pieces: For each piece the nodes from the last view to the piece.
    """

    chain: tuple[fx.Node, ...]
    pieces: tuple[tuple[fx.Node, ...], ...]


def split_packed(gm: fx.GraphModule, facts: Facts) -> bool:
    """Give each piece of a packed layer with dead rows a layer of its own.

    Args:
        gm: The analysed graph; changed in place.
        facts: Its analysis.

    Returns:
        Whether a layer was copied.
    """
    changed = False
    for node in list(gm.graph.nodes):
        packed = _find_packed(node, facts)
        if packed is None:
            continue
        for piece in packed.pieces[1:]:
            _copy(gm, packed.chain, piece)
        changed = True
    return changed


def _find_packed(node: fx.Node, facts: Facts) -> PackedLayer | None:
    """Return a layer as packed, or None if it is none or has no dead row."""
    layer = find_layer(node)
    if layer is None or layer.kind != "linear" or node not in facts.reads:
        return None
    ids = facts.of(node).ids
    if bool((facts.used[ids] & facts.varies(ids)).all()):
        return None
    chain = [node]
    while len(chain[-1].users) == 1 and next(iter(chain[-1].users)).target in MOVES:
        chain.append(next(iter(chain[-1].users)))
    pieces = _find_pieces(chain[-1])
    if len(chain) == 1 or len(pieces) < 2:
        return None
    owned = [_ids_of(path[-1], facts) for path in pieces]
    apart = all(np.intersect1d(one, other).size == 0 for i, one in enumerate(owned) for other in owned[:i])
    return PackedLayer(tuple(chain), tuple(pieces)) if apart else None


def _find_pieces(node: fx.Node) -> list[tuple[fx.Node, ...]]:
    """Return the paths to the pieces of a tensor; none if something else reads it."""
    paths: list[tuple[fx.Node, ...]] = []
    for user in node.users:
        if user.target in SPLITS:
            paths += [(user, item) for item in user.users]
        elif user.target in PIECES:
            paths.append((user,))
        else:
            return []
    return paths


def _ids_of(node: fx.Node, facts: Facts) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    cells = facts.cells[node]
    assert isinstance(cells, Cells)
    return np.unique(cells.ids)


def _copy(gm: fx.GraphModule, chain: tuple[fx.Node, ...], piece: tuple[fx.Node, ...]) -> None:
    """Copy the layer and its views for one piece, which then reads the copy."""
    made: dict[fx.Node, fx.Node] = {}
    with gm.graph.inserting_before(piece[0]):
        for old in (*chain, *piece):
            made[old] = gm.graph.node_copy(old, lambda source: made.get(source, source))
            copy_meta(old, made[old])
    piece[-1].replace_all_uses_with(made[piece[-1]])
