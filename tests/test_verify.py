"""Every rule of the graph, each with a graph that breaks it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import fx, nn

from fxprune.annotation import META_KEY, RowGroup, RowGroupPattern, WeightAnnotation
from fxprune.errors import VerifyError
from fxprune.graph import annotation_of
from fxprune.nodes import store_tensor
from fxprune.operators import fused_convolution
from fxprune.verify import RULES, Rule, verify
from tests.networks import Function, build, find_call, image, layers

_aten = torch.ops.aten


@pytest.fixture
def gm() -> fx.GraphModule:
    """A masked convolution, a view and a linear layer."""
    model = Function(lambda m, x: m.fc(m.conv(x).flatten(1)), conv=nn.Conv2d(2, 4, 3), fc=nn.Linear(16, 3))
    mask = torch.rand(4, 2, 3, 3) < 0.5
    return build(model.double().eval(), image(1, 2, 4, 4), masks={"conv.weight": mask})


def annotate_conv(gm: fx.GraphModule, **changes: object) -> None:
    node = layers(gm)[0].node
    annotation = annotation_of(node)
    assert annotation is not None
    node.meta[META_KEY] = replace(annotation, **changes)  # type: ignore[arg-type]  # tests break it on purpose


def break_operation(gm: fx.GraphModule) -> None:
    with gm.graph.inserting_before(gm.graph.output_node()):
        gm.graph.call_method("relu", (layers(gm)[0].node,))


def break_output(gm: fx.GraphModule) -> None:
    gm.graph.output_node().args = ([layers(gm)[0].node],)


def break_functional(gm: fx.GraphModule) -> None:
    with gm.graph.inserting_before(gm.graph.output_node()):
        gm.graph.call_function(_aten.relu_.default, (layers(gm)[0].node,))


def break_constant_value(gm: fx.GraphModule) -> None:
    store_tensor(gm, "fc.bias", torch.zeros(4))


def break_constant_gradient(gm: fx.GraphModule) -> None:
    gm.get_submodule("fc")._buffers["bias"] = torch.zeros(3, dtype=torch.float64, requires_grad=True)


def break_constant_existence(gm: fx.GraphModule) -> None:
    layer = layers(gm)[1]
    layer.weight.target = "fc"


def break_value(gm: fx.GraphModule) -> None:
    find_call(gm, _aten.view.default).meta.pop("val")


def break_getitem(gm: fx.GraphModule) -> None:
    with gm.graph.inserting_before(gm.graph.output_node()):
        node = gm.graph.call_function(operator.getitem, (layers(gm)[0].node, 0))
    node.meta["val"] = layers(gm)[0].node.meta["val"]


def break_view(gm: fx.GraphModule) -> None:
    view = find_call(gm, _aten.view.default)
    view.args = (view.args[0], [1, 12])


def break_layer_shapes(gm: fx.GraphModule) -> None:
    layer = layers(gm)[1]
    layer.node.args = (layers(gm)[0].node, *layer.node.args[1:])


def break_bias_shape(gm: fx.GraphModule) -> None:
    layer = layers(gm)[1]
    layer.node.args = (*layer.node.args[:2], layers(gm)[0].bias)


def break_residual(gm: fx.GraphModule) -> None:
    layer = layers(gm)[0]
    args = (layer.input, layer.weight, layer.bias, layer.input, (1, 1), ((0, 0), (0, 0)), (1, 1), 1, None, ())
    with gm.graph.inserting_after(layer.node):
        node = gm.graph.call_function(fused_convolution, args)
    node.meta["val"] = layer.node.meta["val"]


def break_annotation_place(gm: fx.GraphModule) -> None:
    find_call(gm, _aten.view.default).meta[META_KEY] = annotation_of(layers(gm)[0].node)


def break_annotation_type(gm: fx.GraphModule) -> None:
    layers(gm)[0].node.meta[META_KEY] = "mask"


def break_mask_shape(gm: fx.GraphModule) -> None:
    annotate_conv(gm, mask=torch.ones(3, 2, 3, 3, dtype=torch.bool))


def break_mask_type(gm: fx.GraphModule) -> None:
    annotate_conv(gm, mask=torch.ones(4, 2, 3, 3))


def break_zeros(gm: fx.GraphModule) -> None:
    store_tensor(gm, "conv.weight", torch.ones(4, 2, 3, 3, dtype=torch.float64))


def group(rows: int, columns: int) -> RowGroup:
    return RowGroup(np.arange(rows, dtype=np.int32), np.arange(columns, dtype=np.int32))


def break_pattern_cover(gm: fx.GraphModule) -> None:
    annotate_conv(gm, mask=torch.ones(4, 2, 3, 3, dtype=torch.bool))
    annotate_conv(gm, pattern=RowGroupPattern((4, 18), (group(4, 17),)))


def break_pattern_shape(gm: fx.GraphModule) -> None:
    annotate_conv(gm, pattern=RowGroupPattern((4, 19), (group(4, 18),)))


BREAKS: tuple[tuple[Callable[[fx.GraphModule], None], str, str], ...] = (
    (break_operation, "check_operation", "it is a call_method"),
    (break_output, "check_output", "not a flat tuple"),
    (break_functional, "check_functional", "writes into its input"),
    (break_constant_value, "check_constant", r"'fc.bias' is torch.float32 \[4\]"),
    (break_constant_gradient, "check_constant", "'fc.bias' requires a gradient"),
    (break_constant_existence, "check_constant", "'fc' does not exist"),
    (break_value, "check_value", r"no meta\['val'\]"),
    (break_getitem, "check_getitem", "takes element 0"),
    (break_view, "check_view", r"views as \[1, 12\], its value has shape \[1, 16\]"),
    (break_layer_shapes, "check_layer_shapes", "input channels 2 where its weight has 16"),
    (break_bias_shape, "check_layer_shapes", r"bias sizes \[4\] where its weight has \[3\]"),
    (break_residual, "check_residual", r"residual is torch.float64 \[1, 2, 4, 4\]"),
    (break_annotation_place, "check_annotation_place", "owns no weight"),
    (break_annotation_type, "check_annotation_place", "is a str"),
    (break_mask_shape, "check_mask", r"mask has shape \[3, 2, 3, 3\], its weight has \[4, 2, 3, 3\]"),
    (break_mask_type, "check_mask", "mask is torch.float32"),
    (break_zeros, "check_zeros", "weights are not zero"),
    (break_pattern_cover, "check_pattern", "misses 4 of 72 kept weights"),
    (break_pattern_shape, "check_pattern", r"pattern has shape \[4, 19\]"),
)


def test_good_graph_passes(gm: fx.GraphModule) -> None:
    verify(gm)


@pytest.mark.parametrize(("damage", "rule", "message"), BREAKS, ids=[damage.__name__ for damage, _, _ in BREAKS])
def test_broken_graph_is_refused(
    gm: fx.GraphModule, damage: Callable[[fx.GraphModule], None], rule: str, message: str
) -> None:
    damage(gm)
    (named,) = [check for check in RULES if check.__name__ == rule]
    faults = [fault for fault in (named(gm, node) for node in gm.graph.nodes) if fault is not None]
    assert faults
    with pytest.raises(VerifyError, match=message):
        verify(gm)


def test_graph_out_of_order_is_refused(gm: fx.GraphModule) -> None:
    first, second = layers(gm)
    second.node.append(first.node)
    with pytest.raises(VerifyError, match="not well-formed"):
        verify(gm)


def test_every_rule_is_broken_by_a_test() -> None:
    assert {rule for _, rule, _ in BREAKS} == {rule.__name__ for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule.__name__))
def test_every_rule_is_a_sentence(rule: Rule) -> None:
    assert (rule.__doc__ or "").endswith(".")


def test_error_says_where_and_shows_the_graph(gm: fx.GraphModule) -> None:
    break_mask_shape(gm)
    with pytest.raises(VerifyError) as caught:
        verify(gm)
    first, second, *excerpt = str(caught.value).splitlines()
    assert first.startswith("Node 'conv2d' (module 'conv'): mask has shape")
    assert second == "A pass that cuts a weight cuts its mask with it."
    assert any(line.startswith("  > %conv2d") for line in excerpt)


def test_annotations_of_transposed_layers_are_checked() -> None:
    gm = build(nn.ConvTranspose2d(4, 6, 3, groups=2).double().eval(), image(1, 4, 3, 3))
    verify(gm)
    annotation = annotation_of(layers(gm)[0].node)
    assert isinstance(annotation, WeightAnnotation)
