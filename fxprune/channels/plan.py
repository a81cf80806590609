"""Decide which channels stay: those that are needed, and those that have to stay beside them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import fx

from fxprune.channels.facts import Completion, Facts, Join, Kind
from fxprune.channels.fold import group_columns, group_width
from fxprune.channels.grid import BoolArray, IntArray, even_lines, fill_lines
from fxprune.channels.rules.layer import columns_read_by, input_ids
from fxprune.channels.rules.layer_cut import find_carrier
from fxprune.layer import Layer, find_layer

_WORTH = 8
"""An operand of an addition holds fewer channels than the sum if at least one in this many can go."""


@dataclass
class ChannelPlan:
    """Which ids stay, and why those stay that are known or unused.

    Attributes:
        facts: The analysis.
        round_to: Layers keep a multiple of this many channels where dead ones are left to fill up with.
        align: Operands of an addition keep the channels of the sum.
        keep: For every id whether it stays in its tensors.
        reasons: For tied ids (by the number of their set) why they stay though nothing needs them.
        sets: For every id the number of its set of tied ids.
    """

    facts: Facts
    round_to: int = 1
    align: bool = False
    keep: BoolArray = field(default_factory=lambda: np.empty(0, dtype=bool))
    reasons: dict[int, str] = field(default_factory=dict)
    sets: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    _kept: BoolArray = field(default_factory=lambda: np.empty(0, dtype=bool))

    def admit(self, ids: IntArray, reason: str) -> bool:
        """Keep ids and all that are tied to them; return whether anything was new."""
        numbers = np.unique(self.sets[ids])
        new = numbers[~self._kept[numbers]]
        if new.size == 0:
            return False
        self._kept[new] = True
        for number in new.tolist():
            self.reasons.setdefault(number, reason)
        self.keep = self._kept[self.sets]
        return True

    def tie(self, equal: list[tuple[IntArray, IntArray]]) -> None:
        """Build the sets of tied ids anew, and keep those in which something is needed."""
        count = self.facts.kind.size
        first = np.concatenate([pair[0] for pair in equal]) if equal else np.empty(0, dtype=np.int64)
        second = np.concatenate([pair[1] for pair in equal]) if equal else np.empty(0, dtype=np.int64)
        graph = coo_array((np.ones(first.size, dtype=bool), (first, second)), shape=(count, count))
        sets, self.sets = connected_components(graph, directed=False)
        needed = self.facts.used & self.facts.varies(np.arange(count))
        self._kept = np.zeros(sets, dtype=bool)
        self._kept[self.sets[needed]] = True
        self.keep = self._kept[self.sets]
        pins = np.fromiter(self.facts.pinned, dtype=np.int64, count=len(self.facts.pinned))
        for identity in pins[~self.keep[pins]].tolist():
            self.admit(np.array([identity]), self.facts.pinned[identity])


def make_plan(gm: fx.GraphModule, facts: Facts, *, round_to: int = 1, align: bool = False) -> ChannelPlan:
    """Decide which channels stay.

    Args:
        gm: The analysed graph.
        facts: Its analysis.
        round_to: Keep multiples of this many channels a layer.
        align: Let operands of additions keep the channels of the sum, so that nothing has to be scattered.

    Returns:
        The plan.
    """
    plan = ChannelPlan(facts, round_to, align)
    plan.tie(facts.equal)
    tied = [join for join in facts.joins if align or not _is_worth(plan, join)]
    loose = [join for join in facts.joins if join not in tied]
    whole = [item for item in facts.completions if align or len(facts.of(item.node).axes) != 1]
    plan.tie([*facts.equal, *((join.result, ids) for join in tied for ids in join.operands)])
    layers = [layer for layer in map(find_layer, gm.graph.nodes) if layer is not None and layer.node in facts.reads]
    while _settle(plan, layers, loose, whole):
        pass
    return plan


def _is_worth(plan: ChannelPlan, join: Join) -> bool:
    """Return whether an operand can do without enough of the channels of the sum."""
    needed = plan.facts.used[join.result] & plan.facts.varies(join.result)
    spare = max(int((needed & ~plan.keep[ids]).sum()) for ids in join.operands)
    return spare * _WORTH >= max(1, int(needed.sum()))


def _settle(plan: ChannelPlan, layers: list[Layer], joins: list[Join], whole: list[Completion]) -> bool:
    """Apply every condition once; return whether one of them kept more."""
    changed = False
    for join in joins:
        base = max(join.operands, key=lambda ids: int(plan.keep[ids].sum()))
        wanted = join.result[plan.keep[base] & ~plan.keep[join.result]]
        changed |= wanted.size > 0 and plan.admit(wanted, f"the sum {join.node.name} takes over an operand's channels")
    for item in whole:
        wanted = item.operand[plan.keep[item.result] & ~plan.keep[item.operand]]
        changed |= wanted.size > 0 and plan.admit(wanted, f"their constants meet varying values in {item.node.name}")
    for ids in plan.facts.boxes.values():
        kept = plan.keep[ids]
        more = ids[even_lines(kept) & ~kept]
        changed |= more.size > 0 and plan.admit(more, "a view needs equally many channels in every part")
    for layer in layers:
        changed |= _even_groups(plan, layer)
        changed |= _keep_carrier(plan, layer)
        changed |= _round_rows(plan, layer)
    return changed


def _even_groups(plan: ChannelPlan, layer: Layer) -> bool:
    """Let every conv group that stays keep equally many rows and equally many input channels."""
    if layer.groups == 1:
        return False
    facts = plan.facts
    rows: IntArray = facts.of(layer.node).ids.reshape(layer.groups, -1)
    source = facts.of(layer.input)
    reason = f"{layer.node.name} needs equally many channels in each of its {layer.groups} conv groups"
    kept = plan.keep[rows]
    changed = plan.admit(rows[fill_lines(kept) & ~kept], reason) if bool((fill_lines(kept) & ~kept).any()) else False
    if source.ids.size == 1:
        return changed
    inputs = input_ids(layer, source).reshape(layer.groups, -1)
    live = np.asarray(plan.keep[rows].any(axis=1))
    wanted = plan.keep[inputs] & live[:, None]
    if bool(live.any()) and not bool(wanted.any()):
        return changed
    wanted[live & ~wanted.any(axis=1), 0] = True
    more = fill_lines(wanted) & ~plan.keep[inputs]
    return changed | (bool(more.any()) and plan.admit(inputs[more], reason))


def _keep_carrier(plan: ChannelPlan, layer: Layer) -> bool:
    """Keep one dead input channel of each conv group whose constants zero padding would bend."""
    facts = plan.facts
    source = facts.of(layer.input)
    bends = layer.kind == "conv_transpose" or any(low or high for low, high in layer.padding)
    if not bends or source.ids.size == 1 or (layer.groups > 1 and group_width(layer) == 1):
        return False
    inputs = input_ids(layer, source)
    rows = facts.of(layer.node).ids.reshape(-1)
    active = plan.keep[rows] & facts.varies(rows)
    read = columns_read_by(layer, facts.reads[layer.node], active)
    known = read & (facts.kind[inputs] == Kind.CONST) & (facts.value[inputs] != 0)
    changed = False
    for group in np.unique(np.flatnonzero(known & ~plan.keep[inputs]) // group_width(layer)).tolist():
        own = group_columns(layer, group)
        held = own[plan.keep[inputs[own]]]
        if find_carrier(facts.kind[inputs[held]], facts.value[inputs[held]]) is not None:
            continue
        lost = own[known[own]]
        chosen = lost[int(np.abs(facts.value[inputs[lost]]).argmax())]
        changed |= plan.admit(inputs[[chosen]], f"it carries the constants of dead channels into {layer.node.name}")
    return changed


def _round_rows(plan: ChannelPlan, layer: Layer) -> bool:
    """Keep a multiple of `round_to` rows."""
    rows = plan.facts.of(layer.node).ids.reshape(-1)
    kept = plan.keep[rows]
    count = int(kept.sum())
    missing = min(-count % plan.round_to, rows.size - count)
    if count == 0 or missing == 0 or layer.groups > 1:
        return False
    return plan.admit(rows[np.flatnonzero(~kept)[:missing]], f"the target likes multiples of {plan.round_to} channels")
