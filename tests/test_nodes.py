"""Constants, annotations, arguments and module paths of nodes."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from fxprune.graph import annotation_of, copy_meta, get_tensor, set_tensor, tidy
from fxprune.layer import module_path
from fxprune.nodes import add_tensor, bind, find_tensor, free_name, is_random, store_tensor
from tests.networks import Function, build, find_call, image, layers, run

_aten = torch.ops.aten


@pytest.fixture
def gm() -> fx.GraphModule:
    """One weight read by two linear nodes, and one of its own."""
    a, b = nn.Linear(3, 3), nn.Linear(3, 2)
    return build(Function(lambda m, x: m.b(m.a(m.a(x))), a=a, b=b).double().eval(), image(2, 3))


def test_get_tensor_returns_the_constant(gm: fx.GraphModule) -> None:
    assert get_tensor(gm, layers(gm)[0].weight).shape == (3, 3)


def test_get_tensor_refuses_other_nodes(gm: fx.GraphModule) -> None:
    with pytest.raises(TypeError, match="reads no constant"):
        get_tensor(gm, layers(gm)[0].node)


def test_set_tensor_keeps_the_name_of_a_constant_with_one_user(gm: fx.GraphModule) -> None:
    node = layers(gm)[2].weight
    changed = set_tensor(gm, node, torch.zeros(4, 3, dtype=torch.float64))
    assert changed is node
    assert node.target == "b.weight"
    assert node.meta["val"].shape == (4, 3)


def test_set_tensor_leaves_a_shared_constant_alone(gm: fx.GraphModule) -> None:
    layer = layers(gm)[0]
    before = get_tensor(gm, layer.weight).clone()
    changed = set_tensor(gm, layer.weight, torch.zeros(3, 3, dtype=torch.float64))
    assert changed is not layer.weight
    assert changed.target == "a.weight_1"
    assert torch.equal(get_tensor(gm, layer.weight), before)


def test_set_tensor_writes_into_no_tensor_of_the_user() -> None:
    model = nn.Linear(3, 2).double().eval()
    before = model.weight.detach().clone()
    gm = build(model, image(1, 3))
    set_tensor(gm, layers(gm)[0].weight, torch.zeros(2, 3, dtype=torch.float64))
    assert torch.equal(model.weight, before)
    assert not run(gm, image(1, 3))[0].equal(torch.zeros(1, 2))


def test_added_tensor_gets_a_free_name_and_a_value(gm: fx.GraphModule) -> None:
    node = add_tensor(gm, "b.bias", torch.ones(2, dtype=torch.float64), layers(gm)[2].weight)
    assert node.target == "b.bias_1"
    assert node.meta["val"].shape == (2,)
    tidy(gm)
    assert find_tensor(gm, "b.bias_1") is None  # nobody reads it


def test_add_tensor_needs_a_value_beside_it(gm: fx.GraphModule) -> None:
    weight = layers(gm)[2].weight
    weight.meta["val"] = None
    with pytest.raises(TypeError, match="FakeTensor"):
        add_tensor(gm, "b.bias", torch.ones(2), weight)


def test_free_name_steps_over_tensors_and_modules(gm: fx.GraphModule) -> None:
    assert free_name(gm, "a") == "a_1"
    assert free_name(gm, "a.weight") == "a.weight_1"
    assert free_name(gm, "a.weight.part") == "a_weight_part"
    assert free_name(gm, "new.part") == "new.part"


def test_store_tensor_makes_modules_on_the_way(gm: fx.GraphModule) -> None:
    store_tensor(gm, "x.0.y", torch.ones(1))
    assert find_tensor(gm, "x.0.y") is not None


def test_copy_meta_takes_annotation_module_and_value(gm: fx.GraphModule) -> None:
    old, new = layers(gm)[0].node, layers(gm)[2].node
    copy_meta(old, new)
    assert annotation_of(new) is annotation_of(old)
    assert new.meta["val"] is old.meta["val"]
    assert module_path(new) == "a"


def test_module_path_without_modules_is_the_name(gm: fx.GraphModule) -> None:
    node = layers(gm)[0].node
    node.meta.pop("nn_module_stack")
    assert module_path(node) == node.name


def test_bind_fills_in_defaults_of_operators_and_functions(gm: fx.GraphModule) -> None:
    node = gm.graph.call_function(_aten.conv2d.default, (1, 2))
    assert bind(node)["groups"] == 1
    assert bind(node)["bias"] is None
    function = gm.graph.call_function(free_name, (gm, "x"))  # type: ignore[arg-type]  # any function will do
    assert bind(function)["name"] == "x"


def test_bind_refuses_what_calls_nothing(gm: fx.GraphModule) -> None:
    with pytest.raises(TypeError, match="calls no function"):
        bind(layers(gm)[0].weight)


@pytest.mark.parametrize(("probability", "random"), [(0.0, False), (0.5, True)])
def test_attention_is_random_when_it_drops(probability: float, random: bool) -> None:
    graph = fx.Graph()
    node = graph.call_function(_aten.scaled_dot_product_attention.default, (1, 2, 3, None, probability))
    assert is_random(node) is random


def test_dropout_in_training_mode_is_random() -> None:
    graph = fx.Graph()
    assert is_random(graph.call_function(_aten.native_dropout.default, (1, 0.5, True)))
    assert is_random(graph.call_function(_aten.rand.default, ([2],)))
    assert not is_random(graph.call_function(_aten.relu.default, (1,)))


def test_find_call_finds(gm: fx.GraphModule) -> None:
    assert find_call(gm, _aten.linear.default) is layers(gm)[0].node
