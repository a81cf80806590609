"""Graphs as stable text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import fx, nn

from fxprune.annotation import META_KEY, RowGroup, RowGroupPattern
from fxprune.graph import annotation_of
from fxprune.printer import format_argument, format_excerpt, format_graph, format_node, format_target, format_value
from tests.networks import Function, build, find_call, image, layers

Golden = Callable[[str, str], None]


@pytest.fixture
def gm() -> fx.GraphModule:
    """A small residual network with one mask."""
    model = Function(
        lambda m, x: m.fc((m.a(x).relu() + nn.functional.relu6(m.b(x))).flatten(1)),
        a=nn.Conv2d(2, 3, 3, bias=False),
        b=nn.Conv2d(2, 3, 3),
        fc=nn.Linear(12, 2),
    )
    mask = torch.zeros(3, 2, 3, 3, dtype=torch.bool)
    mask[:2] = True
    return build(model.double().eval(), image(1, 2, 4, 4), masks={"a.weight": mask})


def test_graph(gm: fx.GraphModule, golden: Golden) -> None:
    golden("small_residual", format_graph(gm))


def test_pattern_is_printed(gm: fx.GraphModule) -> None:
    node = layers(gm)[0].node
    annotation = annotation_of(node)
    assert annotation is not None
    group = RowGroup(np.arange(2, dtype=np.int32), np.arange(18, dtype=np.int32))
    node.meta[META_KEY] = replace(annotation, pattern=RowGroupPattern((3, 18), (group,)))
    assert format_node(node).endswith("# nnz 36/54, stored 36: 1 x 2 rows")


def test_excerpt_marks_the_node(gm: fx.GraphModule) -> None:
    lines = format_excerpt(find_call(gm, torch.ops.aten.relu.default), radius=1).splitlines()
    assert [line[:4] for line in lines] == ["    ", "  > ", "    "]
    assert "relu(%conv2d)" in lines[1]


def test_excerpt_of_a_constant_shows_it(gm: fx.GraphModule) -> None:
    assert "  > %a_weight: float64[3, 2, 3, 3] = constant a.weight" in format_excerpt(layers(gm)[0].weight)


def test_node_without_a_value_is_printed(gm: fx.GraphModule) -> None:
    node = layers(gm)[0].node
    node.meta.clear()
    assert format_node(node).startswith("%conv2d = conv2d(")


def test_keyword_arguments_are_printed() -> None:
    node = fx.Graph().call_function(torch.ops.aten.gelu.default, (1.5,), {"approximate": "tanh"})
    assert format_node(node) == "%gelu_default = gelu(1.5, approximate=tanh)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (3, "3"),
        (torch.empty(2, 3), "float32[2, 3]"),
        (torch.tensor(1, dtype=torch.bool), "bool[]"),
        ((torch.empty(1), None), "(float32[1], )"),
        ([torch.empty(1)] * 9, "(" + "float32[1], " * 8 + "...)"),
    ],
)
def test_values(value: object, text: str) -> None:
    assert format_value(value) == text


def test_arguments() -> None:
    assert format_argument([1, (2, None), {"a": 0.1}, torch.float32]) == "[1, (2, None), {a: 0.1}, torch.float32]"


def test_targets() -> None:
    graph = fx.Graph()
    assert format_target(graph.call_function(torch.ops.aten.add.Tensor, (1, 2))) == "add.Tensor"
    assert format_target(graph.call_function(torch.relu, (1,))) == "relu"
    assert format_target(graph.call_method("relu", (1,))) == "relu"
