"""Decide which channels stay: those that are needed, and those that have to stay beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import fx

from fxprune.channels.cost import find_lacking, find_weights, weigh_completion, weigh_join
from fxprune.channels.facts import Completion, Facts, Join, Kind
from fxprune.channels.fold import group_columns, group_width
from fxprune.channels.grid import BoolArray, IntArray, even_lines, fill_lines
from fxprune.channels.rules.layer import columns_read_by, input_ids
from fxprune.channels.rules.layer_cut import find_carrier
from fxprune.channels.spatial import FloatArray
from fxprune.layer import Layer, find_layer


@dataclass
class ChannelPlan:
    """Which ids stay, and why those stay that are known or unused.

    Attributes:
        facts: The analysis.
        round_to: Layers keep a multiple of this many channels where dead ones are left to fill up with.
        adds: "cost", "compact" or "align": whether operands keep the channels of the sum or product.
        keep: For every id whether it stays in its tensors.
        reasons: For tied ids (by the number of their set) why they stay though nothing needs them.
        sets: For every id the number of its set of tied ids.
        weights: For every id what it costs to keep it.
        relief: For every id what is saved elsewhere if it is kept though it is dead.
    """

    facts: Facts
    round_to: int = 1
    adds: str = "cost"
    keep: BoolArray = field(default_factory=lambda: np.empty(0, dtype=bool))
    reasons: dict[int, str] = field(default_factory=dict)
    sets: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    weights: FloatArray = field(default_factory=lambda: np.empty(0))
    relief: FloatArray = field(default_factory=lambda: np.empty(0))
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

    def decide(self, lacking: IntArray, price: float) -> bool:
        """Return whether it is better that ids and all that are tied to them go, for a price."""
        if lacking.size == 0 or self.adds != "cost":
            return lacking.size > 0 and self.adds == "compact"
        return self.weigh(lacking) > price

    def weigh(self, ids: IntArray) -> float:
        """Return what it costs to keep ids and all that are tied to them."""
        gain = np.bincount(self.sets, self.weights, minlength=self._kept.size)
        return float(gain[np.unique(self.sets[ids])].sum())

    def can_go(self, ids: IntArray, reason: str) -> BoolArray:
        """Return which ids are gone, or stay for one reason alone."""
        reasons = [self.reasons.get(number) == reason for number in self.sets[ids].tolist()]
        return np.asarray(~self.keep[ids] | np.array(reasons, dtype=bool))

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
        groups: dict[str, list[int]] = {}
        for identity in pins[~self.keep[pins]].tolist():
            groups.setdefault(self.facts.pinned[identity], []).append(identity)
        for reason, members in groups.items():
            self.admit(np.array(members), reason)


def make_plan(
    gm: fx.GraphModule,
    facts: Facts,
    *,
    round_to: int = 1,
    adds: str = "cost",
    follow: Mapping[str, IntArray] | None = None,
) -> ChannelPlan:
    """Decide which channels stay.

    Args:
        gm: The analysed graph.
        facts: Its analysis.
        round_to: Keep multiples of this many channels a layer.
        adds: "align": operands of additions and products keep the channels of the result, so that nothing has to be
            put together; "compact": they keep their own; "cost": whichever costs less.
        follow: Rows that layers keep, dead or not, by the name of the node; the other options say nothing then.

    Returns:
        The plan.
    """
    layers = [layer for layer in map(find_layer, gm.graph.nodes) if layer is not None and layer.node in facts.reads]
    plan = ChannelPlan(facts, *((round_to, adds) if follow is None else (1, "compact")))
    plan.weights, plan.relief = find_weights(facts, layers), np.zeros(facts.kind.size)
    plan.tie(facts.equal)
    tied = [join for join in facts.joins if not _is_loose(plan, join)]
    loose = [join for join in facts.joins if join not in tied]
    whole = [item for item in facts.completions if not _is_completed(plan, item)]
    lacking = [(join, find_lacking(facts, join, plan.keep)) for join in tied]
    plan.tie([*facts.equal, *((join.result, ids) for join in tied for ids in join.operands)])
    for join, ids in lacking:
        for number in np.unique(plan.sets[ids]).tolist():
            plan.reasons.setdefault(number, f"adding what is left into the sum {join.node.name} would cost more")
    for layer in layers:
        rows = (follow or {}).get(layer.node.name, np.empty(0, dtype=np.int64))
        plan.admit(facts.of(layer.node).ids.reshape(-1)[rows], "the record that is followed keeps them")
    while _settle(plan, layers, loose, whole):
        pass
    return plan


def _is_loose(plan: ChannelPlan, join: Join) -> bool:
    """Return whether operands of an addition hold their own channels; note what each that is lacking costs."""
    lacking = find_lacking(plan.facts, join, plan.keep)
    price = weigh_join(plan.facts, join, plan.keep)
    if not plan.decide(lacking, price):
        return False
    plan.relief[lacking] += price / lacking.size
    return True


def _is_completed(plan: ChannelPlan, item: Completion) -> bool:
    """Return whether known channels leave a tensor that is wanted whole; note what each of them costs."""
    lacking = _find_missing(plan, item)
    price = weigh_completion(plan.facts, item, lacking.size)
    if len(plan.facts.of(item.source).axes) != 1 or not plan.decide(lacking, price):
        return False
    plan.relief[lacking] += price / lacking.size
    return True


def _find_missing(plan: ChannelPlan, item: Completion) -> IntArray:
    """Return the known ids that are gone though those beside them stay."""
    return item.known[plan.keep[item.whole] & ~plan.keep[item.known]]


def _settle(plan: ChannelPlan, layers: list[Layer], joins: list[Join], whole: list[Completion]) -> bool:
    """Apply every condition once; return whether one of them kept more."""
    changed = False
    for join in joins:
        base = max(join.operands, key=lambda ids: int(plan.keep[ids].sum()))
        wanted = join.result[plan.keep[base] & ~plan.keep[join.result]]
        changed |= wanted.size > 0 and plan.admit(wanted, f"the sum {join.node.name} takes over an operand's channels")
    for item in whole:
        wanted = _find_missing(plan, item)
        changed |= wanted.size > 0 and plan.admit(wanted, item.reason)
    for ids in plan.facts.boxes.values():
        kept = plan.keep[ids]
        more = ids[even_lines(kept) & ~kept]
        changed |= more.size > 0 and plan.admit(more, "a view needs equally many channels in every part")
    for layer in layers:
        changed |= _even_groups(plan, layer)
        changed |= _keep_carrier(plan, layer)
    for layer in [] if changed else layers:  # carriers and the like first: they fill up for nothing
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
    """Keep a multiple of `round_to` rows, filled up with those dead ones that cost most elsewhere and least here."""
    rows = plan.facts.of(layer.node).ids.reshape(-1)
    kept = plan.keep[rows]
    count = int(kept.sum())
    missing = min(-count % plan.round_to, rows.size - count)
    if count == 0 or missing == 0 or layer.groups > 1:
        return False
    worth = np.bincount(plan.sets, plan.relief - plan.weights)[plan.sets[rows]]
    dead = np.flatnonzero(~kept)
    chosen = dead[np.argsort(-worth[dead], kind="stable")[:missing]]
    return plan.admit(rows[np.sort(chosen)], f"the target likes multiples of {plan.round_to} channels")
