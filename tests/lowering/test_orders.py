"""The cut that decides where activations lie channels-last and where as planes, against trying out everything."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from fxprune.codegen.target import CpuTarget, parse_target
from fxprune.lowering import copies
from fxprune.lowering.copies import copy_costs
from fxprune.lowering.known import Known
from fxprune.lowering.orders import Family, activations, choose_orders
from fxprune.records.database import Database

Times = dict[fx.Node, dict[Family, float]]
ORDERS: tuple[Family, ...] = ("rows", "pixels")


def build(readers: list[list[int]]) -> tuple[fx.Graph, list[fx.Node]]:
    """Return a graph whose operator i reads the results that `readers[i]` counts, 0 being the input."""
    graph = fx.Graph()
    made = [graph.placeholder("x")]
    for sources in readers:
        made.append(graph.call_function(torch.cat, tuple(made[source] for source in sources)))
    graph.output(made[-1])
    for node in made:
        node.meta["val"] = torch.empty(1, 8, 4, 4, device="meta")
    return graph, made


def find_cost(
    made: list[fx.Node], times: Times, costs: Mapping[fx.Node, float], orders: Mapping[fx.Node, Family]
) -> float:
    """Return the sum of the layers and of one copy for every result that some reader wants in the other order."""
    total = sum(times[node].get(orders[node], math.inf) for node in times)
    for node in made:
        total += costs[node] * any(orders[user] != orders[node] for user in node.users if user.op != "output")
    return total


@st.composite
def problems(draw: st.DrawFn) -> tuple[fx.Graph, list[fx.Node], Times, dict[fx.Node, float]]:
    """Draw a graph of up to seven operators, layers among them, with times and costs of copies."""
    count = draw(st.integers(1, 7))
    readers = [draw(st.lists(st.integers(0, index), min_size=1, max_size=3, unique=True)) for index in range(count)]
    graph, made = build(readers)
    whole = st.integers(0, 12).map(float)
    times: Times = {}
    for node in made[1:]:
        known = draw(st.sampled_from([(), ("rows",), ("pixels",), ORDERS, ORDERS]))
        if known:
            times[node] = {order: draw(whole) for order in ORDERS if order in known}
    return graph, made, times, {node: draw(whole) for node in made}


@settings(deadline=None, max_examples=150)
@given(problems())
def test_no_other_orders_cost_less(problem: tuple[fx.Graph, list[fx.Node], Times, dict[fx.Node, float]]) -> None:
    graph, made, times, costs = problem
    chosen = choose_orders(graph, times, costs.__getitem__)
    assert list(chosen) == list(times)
    best, ours = math.inf, math.inf
    for labels in itertools.product(ORDERS, repeat=len(made) - 1):
        orders: dict[fx.Node, Family] = {made[0]: "pixels", **dict(zip(made[1:], labels, strict=True))}
        cost = find_cost(made, times, costs, orders)
        best = min(best, cost)
        if all(orders[node] == order for node, order in chosen.items()):
            ours = min(ours, cost)
    assert ours == best


def test_a_copy_is_paid_once_for_all_readers() -> None:
    graph, made = build([[0], [1], [1], [1]])
    first, *rest = made[1:]
    times: Times = {first: {"rows": 1.0}, **{node: {"rows": 5.0, "pixels": 3.0} for node in rest}}
    assert set(choose_orders(graph, times, lambda _: 5.0).values()) == {"rows", "pixels"}
    assert set(choose_orders(graph, times, lambda _: 7.0).values()) == {"rows"}, "a copy that gains nothing"


def test_a_residual_keeps_its_order_through_the_branch() -> None:
    """Two copies, into the branch and out of it, are worth it only if the layers between gain more."""
    graph, made = build([[0], [1], [2], [3], [1, 4]])
    last: dict[Family, float] = {"rows": 1.0}
    inner: dict[Family, float] = {"rows": 10.0, "pixels": 8.0}
    times: Times = {made[1]: last, made[2]: inner, made[3]: inner, made[4]: inner, made[5]: last}
    branch = [choose_orders(graph, times, dict.fromkeys(made, cost).__getitem__)[made[3]] for cost in (2.9, 3.1)]
    assert branch == ["pixels", "rows"]


@pytest.fixture
def target() -> CpuTarget:
    return parse_target("cpu", 2)


def test_copies_of_one_size_are_measured_once_and_remembered(
    target: CpuTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, made = build([[0], [1], [2]])
    made[2].meta["val"] = torch.empty(2, 24, 9, 7, device="meta")
    made[3].meta["val"] = torch.empty(0, 24, 9, 7, device="meta")
    measured: list[int] = []
    real = copies._measure

    def measure(sizes: list[copies.Size], target: CpuTarget) -> dict[copies.Size, float]:
        measured.append(len(sizes))
        return real(sizes, target)

    monkeypatch.setattr(copies, "_measure", measure)
    database = Database(tmp_path / "records")
    costs = copy_costs(activations(graph), target, Known(database, target, fills=True), measure=True)
    assert 0 < costs(made[0]) == costs(made[1]) != costs(made[2]) > 0
    assert costs(made[3]) == 0, "an empty tensor costs nothing"
    again = copy_costs(activations(graph), target, Known(database, target, fills=True), measure=True)
    assert [again(node) for node in made] == [costs(node) for node in made]
    assert measured == [2], "two sizes, once"


def test_copies_are_predicted_where_nothing_is_measured(target: CpuTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, made = build([[0]])
    made[1].meta["val"] = torch.empty(16, 8, 4, 4, device="meta")
    monkeypatch.delattr(copies, "_measure")
    costs = copy_costs(activations(graph), target, None, measure=False)
    assert costs(made[1]) == 16 * costs(made[0]) > 0
