"""Tidy: dead code and unused constants out, shapes propagated anew."""

from __future__ import annotations

import torch
from torch import nn

from fxprune.graph import propagate_shapes, set_tensor, tidy
from tests.networks import Function, build, image, layers


def test_dead_calls_and_their_constants_go() -> None:
    model = Function(lambda m, x: (m.a(x), m.b(x))[0], a=nn.Linear(3, 3), b=nn.Linear(3, 3)).double().eval()
    gm = build(model, image(1, 3))
    with gm.graph.inserting_before(gm.graph.output_node()):
        gm.graph.call_function(torch.ops.aten.relu.default, (layers(gm)[0].node,))
    tidy(gm)
    assert {name for name, _ in gm.named_buffers()} == {"a.weight", "a.bias"}
    assert [name for name, _ in gm.named_modules()] == ["", "a"]
    assert sum(node.op == "call_function" for node in gm.graph.nodes) == 1


def test_unused_inputs_stay() -> None:
    gm = build(Function(lambda _m, x, _y: x + 1).eval(), image(1), image(2))
    tidy(gm)
    assert sum(node.op == "placeholder" for node in gm.graph.nodes) == 2


def test_shapes_follow_a_cut_weight() -> None:
    gm = build(nn.Linear(3, 5).double().eval(), image(2, 3))
    layer = layers(gm)[0]
    assert layer.bias is not None
    set_tensor(gm, layer.weight, torch.zeros(4, 3, dtype=torch.float64))
    set_tensor(gm, layer.bias, torch.zeros(4, dtype=torch.float64))
    tidy(gm)
    assert layers(gm)[0].output_shape == (2, 4)


def test_shapes_follow_new_inputs() -> None:
    gm = build(nn.Conv2d(3, 4, 3).double().eval(), image(1, 3, 5, 5))
    propagate_shapes(gm, (image(2, 3, 9, 9),))
    assert layers(gm)[0].output_shape == (2, 4, 7, 7)


def test_nothing_is_computed() -> None:
    gm = build(nn.Linear(3, 5).double().eval(), image(2, 3))
    assert all(
        isinstance(node.meta["val"], torch._subclasses.FakeTensor) for node in gm.graph.nodes if node.op != "output"
    )
