"""The kinds of layers of a model: those of one kind are measured once."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from fxprune.lowering.choice import Case
from fxprune.lowering.in_place import find_last_readers
from fxprune.lowering.known import workload_text
from fxprune.lowering.measure import Trial
from fxprune.lowering.plan import is_private, wanted_halo


def find_trials(cases: Mapping[fx.Node, Case]) -> tuple[dict[fx.Node, str], dict[str, Trial]]:
    """Return the kind of every layer, and one layer of each kind as it would lie between row-lane kernels.

    Args:
        cases: The layers that kernels could compute, by node in graph order.
    """
    layers = {node: case.layer for node, case in cases.items()}
    shapes = {node: case.shape for node, case in cases.items()}
    last_readers = find_last_readers(next(iter(cases)).graph, layers) if cases else set()
    hoped = dict.fromkeys(cases, "rows")
    kinds: dict[fx.Node, str] = {}
    unique: dict[str, Trial] = {}
    for node, case in cases.items():
        kind = case.layer.kind, case.layer.dims
        x_halo = wanted_halo(case.layer.input, kind, layers, shapes, hoped)
        y_halo = wanted_halo(node, kind, layers, shapes, hoped)
        trial = Trial(case, is_private(node, layers, hoped), x_halo, y_halo, node in last_readers)
        kinds[node] = workload_text(trial)
        unique.setdefault(kinds[node], trial)
    return kinds, unique
