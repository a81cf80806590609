"""Runs of views read as one: every run that is drawn, what is no permutation of axes, and how few calls it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx
from torch.fx.node import Argument

from fxprune.graph import propagate_shapes
from fxprune.views import find_run, is_view, read_run

_aten = torch.ops.aten

_Views = Sequence[tuple[Callable[..., object], tuple[Argument, ...]]]


def trace(shape: Sequence[int], views: _Views) -> fx.Node:
    """Return the last node of a graph that runs views of an input."""
    graph = fx.Graph()
    node = graph.placeholder("x")
    node.meta["val"] = torch.empty(*shape)
    for target, arguments in views:
        node = graph.call_function(target, (node, *arguments))
    graph.output(node)
    propagate_shapes(fx.GraphModule(torch.nn.Module(), graph))
    return node


def run_calls(graph: fx.Graph, x: torch.Tensor) -> torch.Tensor:
    result = fx.GraphModule(torch.nn.Module(), graph)(x)
    assert isinstance(result, torch.Tensor)
    return result


def rewrite(end: fx.Node) -> tuple[fx.Graph, int]:
    """Return a graph with the run before a node as one view, and how many calls that takes."""
    source, run = find_run(end)
    view = read_run(source, run)
    assert view is not None
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = source.meta["val"]
    graph.output(view.insert(graph, x))
    count = sum(node.op == "call_function" for node in graph.nodes)
    assert count == view.count_calls(source.meta["val"].shape)
    return graph, count


def factors(number: int) -> list[int]:
    return [factor for factor in range(1, number + 1) if number % factor == 0]


@st.composite
def drawn_views(draw: st.DrawFn) -> tuple[tuple[int, ...], _Views]:
    """Draw a shape and views of it, all of which keep every cell."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4)))
    first = shape
    views: list[tuple[Callable[..., object], tuple[Argument, ...]]] = []
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["reshape", "permute", "unsqueeze", "squeeze", "select"]))
        if kind == "reshape":
            rest, sizes = math.prod(shape), list[int]()
            while rest > 1:
                sizes.append(draw(st.sampled_from(factors(rest))))
                rest //= sizes[-1]
            views.append((_aten.reshape.default, (sizes,)))
            shape = tuple(sizes)
        elif kind == "permute":
            axes = draw(st.permutations(range(len(shape))))
            views.append((_aten.permute.default, (axes,)))
            shape = tuple(shape[axis] for axis in axes)
        elif kind == "unsqueeze":
            axis = draw(st.integers(0, len(shape)))
            views.append((_aten.unsqueeze.default, (axis,)))
            shape = (*shape[:axis], 1, *shape[axis:])
        elif kind == "squeeze":
            views.append((_aten.squeeze.default, ()))
            shape = tuple(size for size in shape if size != 1)
        elif 1 in shape:
            axis = shape.index(1)
            views.append((_aten.select.int, (axis, 0)))
            shape = (*shape[:axis], *shape[axis + 1 :])
    return first, views


@given(drawn_views())
def test_a_run_is_what_its_one_view_is(drawn: tuple[tuple[int, ...], _Views]) -> None:
    shape, views = drawn
    end = trace(shape, views)
    source, run = find_run(end)
    assert (source.op, len(run)) == ("placeholder", len(views))
    if read_run(source, run) is None:
        return
    graph, count = rewrite(end)
    assert count <= 3
    x = torch.randn(shape)
    found, expected = run_calls(graph, x), run_calls(end.graph, x)
    assert found.shape == expected.shape
    assert torch.equal(found, expected)


_HEADS: _Views = [
    (_aten.transpose.int, (0, 1)),
    (_aten.reshape.default, ([7, 24, 5],)),
    (_aten.transpose.int, (0, 1)),
    (_aten.reshape.default, ([6, 4, 7, 5],)),
]


@pytest.mark.parametrize(
    ("shape", "views", "calls"),
    [
        ((2, 3), [(_aten.t.default, ()), (_aten.t.default, ())], []),
        ((2, 1, 3), [(_aten.transpose.int, (0, 1)), (_aten.squeeze.dim, (0,))], [_aten.reshape.default]),
        ((2, 3, 4), [(_aten.transpose.int, (0, 1)), (_aten.transpose.int, (1, 2))], [_aten.permute.default]),
        ((6, 7, 20), _HEADS, [_aten.reshape.default, _aten.permute.default]),
        (
            (2, 3, 4, 5),
            [(_aten.permute.default, ([2, 0, 1, 3],)), (_aten.reshape.default, ([8, 15],))],
            [_aten.permute.default, _aten.reshape.default],
        ),
    ],
    ids=["nothing", "axes of size 1", "two transposes", "heads", "heads joined"],
)
def test_as_few_calls_as_there_can_be(shape: Sequence[int], views: _Views, calls: list[object]) -> None:
    end = trace(shape, views)
    graph, count = rewrite(end)
    assert [node.target for node in graph.nodes if node.op == "call_function"] == calls
    assert count == len(calls)
    x = torch.randn(*shape)
    assert torch.equal(run_calls(graph, x), run_calls(end.graph, x))


def test_a_view_that_merges_what_was_moved_copies() -> None:
    source, run = find_run(trace((2, 3, 4), [(_aten.transpose.int, (0, 1)), (_aten.reshape.default, ([6, 4],))]))
    assert (joined := read_run(source, run)) is not None
    assert joined.copies((2, 3, 4))
    source, run = find_run(trace((6, 4), [(_aten.reshape.default, ([2, 3, 4],)), (_aten.transpose.int, (0, 1))]))
    assert (split := read_run(source, run)) is not None
    assert not split.copies((6, 4))


def test_the_last_axis_is_kept_whole_or_not() -> None:
    def read(shape: Sequence[int], views: _Views) -> bool:
        view = read_run(*find_run(trace(shape, views)))
        assert view is not None
        return view.keeps_last(shape[-1])

    assert read((2, 3, 4), [(_aten.transpose.int, (0, 1))])
    assert read((2, 3, 4), [(_aten.reshape.default, ([6, 4],))])
    assert not read((2, 3, 4), [(_aten.transpose.int, (1, 2))])
    assert not read((2, 3, 4), [(_aten.reshape.default, ([6, 2, 2],))])
    assert not read((2, 3, 4), [(_aten.reshape.default, ([2, 12],))])


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        (_aten.select.int, (0, 1)),
        (_aten.slice.Tensor, (0, 0, 1)),
        (_aten.expand.default, ([3, 2, 4],)),
        (_aten.relu.default, ()),
    ],
    ids=["one of two", "part", "repeated", "no view"],
)
def test_what_has_not_all_cells_once_is_no_view(target: Callable[..., object], arguments: tuple[Argument, ...]) -> None:
    shape = (1, 2, 4) if target is _aten.expand.default else (2, 4)
    assert not is_view(trace(shape, [(target, arguments)]))


def test_a_tensor_too_large_to_read_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    source, run = find_run(trace((2, 3), [(_aten.t.default, ()), (_aten.t.default, ())]))
    monkeypatch.setattr("fxprune.views._LARGEST", 5)
    assert read_run(source, run) is None


def test_an_empty_run_takes_no_call() -> None:
    source = trace((2, 3), [])
    assert (view := read_run(source, [])) is not None
    assert (view.shape, view.count_calls((2, 3))) == ((2, 3), 0)


def test_a_run_and_one_more_view_are_read_as_one() -> None:
    source, run = find_run(trace((2, 3, 4), [(_aten.transpose.int, (0, 1))]))
    back = read_run(*find_run(trace((3, 2, 4), [(_aten.transpose.int, (0, 1))])))
    assert (view := read_run(source, run, back)) is not None
    assert (view.shape, view.count_calls((2, 3, 4))) == ((2, 3, 4), 0)
