"""Input-independent arithmetic becomes one constant, named as the user would."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from fxprune.errors import MaskError, UnsupportedError
from fxprune.graph import annotate, annotation_of, capture
from tests.networks import Function, difference, image, layers, reference, run, targets


class Mask(nn.Module):
    """A parametrization that multiplies a fixed mask."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.get_buffer("mask")


def pruned(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


def pruned_twice(layer: nn.Module) -> nn.Module:
    prune.random_unstructured(pruned(layer), "weight", 0.3)
    prune.random_unstructured(layer, "bias", 0.5)
    return layer


def parametrised(layer: nn.Module) -> nn.Module:
    mask = (torch.rand(layer.get_parameter("weight").shape) < 0.5).double()
    parametrize.register_parametrization(layer, "weight", Mask(mask))
    return layer


def weight_normed(layer: nn.Module) -> nn.Module:
    parametrizations.weight_norm(layer)
    return layer


def spectral_normed(layer: nn.Module) -> nn.Module:
    parametrizations.spectral_norm(layer)
    return layer


@pytest.mark.parametrize("hook", [pruned, pruned_twice, parametrised, weight_normed, spectral_normed])
def test_weight_behind_a_hook_is_one_constant_with_the_usual_name(hook: Callable[[nn.Module], nn.Module]) -> None:
    model = Function(lambda m, x: m.b(m.a(m.a(x))), a=hook(nn.Linear(4, 4).double()), b=nn.Linear(4, 4).double()).eval()
    x = image(2, 4)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gm = capture(model, (x,), {}).graph_module
    assert [layer.weight.target for layer in layers(gm)] == ["a.weight", "a.weight", "b.weight"]
    assert layers(gm)[0].weight is layers(gm)[1].weight
    assert targets(gm) == [torch.ops.aten.linear.default] * 3
    assert difference(run(gm, x)[0], reference(model, x)) < 1e-12
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_unused_parts_are_gone() -> None:
    gm = capture(pruned(nn.Conv2d(3, 4, 3)).eval(), (torch.randn(1, 3, 5, 5),), {}).graph_module
    assert {name for name, _ in gm.named_buffers()} == {"weight", "bias"}


def test_mask_of_a_pruned_layer_goes_by_its_usual_name() -> None:
    layer = pruned(nn.Linear(4, 4)).eval()
    gm = capture(layer, (torch.randn(1, 4),), {}).graph_module
    mask = layer.get_buffer("weight_mask").bool()
    annotate(gm, {"weight": mask})
    annotation = annotation_of(layers(gm)[0].node)
    assert annotation is not None
    assert annotation.nnz == 8


def test_mask_of_a_pruned_layer_that_forward_leaves_out_is_no_mistake() -> None:
    model = Function(lambda m, x: m.a(x), a=nn.Linear(4, 4), aux=pruned(nn.Linear(4, 4))).eval()
    gm = capture(model, (torch.randn(1, 4),), {}).graph_module
    annotate(gm, {"aux.weight": torch.rand(4, 4) < 0.5})


def test_shared_pruned_module_answers_to_both_names() -> None:
    layer = pruned(nn.Linear(4, 4))
    gm = capture(Function(lambda m, x: m.b(m.a(x)), a=layer, b=layer).eval(), (torch.randn(1, 4),), {}).graph_module
    annotate(gm, {"b.weight": layer.get_buffer("weight_mask").bool()})
    assert [layer.weight.target for layer in layers(gm)] == ["a.weight", "a.weight"]


def test_mask_of_a_weight_that_is_computed_from_is_refused() -> None:
    model = Function(lambda m, x: F.linear(x, m.fc.weight * 2), fc=nn.Linear(4, 4)).eval()
    gm = capture(model, (torch.randn(1, 4),), {}).graph_module
    annotate(gm, {"fc.weight": torch.ones(4, 4, dtype=torch.bool)})  # keeps everything: harmless
    with pytest.raises(MaskError, match=r"the model computes fc.weight_1 from this tensor"):
        annotate(gm, {"fc.weight": torch.eye(4, dtype=torch.bool)})


def test_tables_are_evaluated_once() -> None:
    def forward(_: nn.Module, x: torch.Tensor) -> object:
        return x + torch.arange(4).double() * 2 - torch.zeros(2, 4).double()

    x = image(2, 4)
    gm = capture(Function(forward).eval(), (x,), {}).graph_module
    assert targets(gm) == [torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor]
    assert torch.equal(run(gm, x)[0], x + torch.arange(4).double() * 2)


def test_lists_of_constants_are_taken_apart() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> object:
        first, second = m.get_parameter("fc.weight").chunk(2)
        return F.linear(F.linear(x, first), second.t())

    x = image(2, 4)
    model = Function(forward, fc=nn.Linear(4, 6)).double().eval()
    gm = capture(model, (x,), {}).graph_module
    assert len(layers(gm)) == 2
    assert torch.equal(run(gm, x)[0], reference(model, x))


@pytest.mark.parametrize(
    ("function", "linear"),
    [
        (lambda m, x: torch.addmm(m.fc.bias, x, m.fc.weight.t()), True),
        (lambda m, x: torch.mm(x, m.fc.weight.t()), True),
        (lambda m, x: torch.mm(x, m.fc.weight.transpose(-2, -1)), True),
        (lambda m, x: torch.mm(x, m.fc.weight.permute(1, 0)), True),
        (lambda m, x: torch.mm(x, m.fc.weight), False),  # not transposed
        (lambda _m, x: torch.mm(x, x.t()), False),  # not constant
        (lambda m, x: torch.addmm(m.fc.bias, x, m.fc.weight.t(), alpha=2), False),  # scaled
        (lambda m, x: torch.addmm(x, x, m.fc.weight.t()), False),  # no bias
    ],
)
def test_products_with_a_transposed_weight_become_linear(function: Callable[..., object], linear: bool) -> None:
    model, x = Function(function, fc=nn.Linear(4, 4)).double().eval(), image(4, 4)
    gm = capture(model, (x,), {}).graph_module
    assert [layer.weight.target for layer in layers(gm)] == (["fc.weight"] if linear else [])
    assert difference(run(gm, x)[0], reference(model, x)) < 1e-12


def test_tied_tensor_has_one_name() -> None:
    fc, embedding = nn.Linear(4, 7, bias=False), nn.Embedding(7, 4)
    fc.weight = embedding.weight
    model = Function(lambda m, i: m.fc(m.emb(i)), emb=embedding, fc=fc).eval()
    gm = capture(model, (torch.tensor([[1, 2]]),), {}).graph_module
    assert [node.target for node in gm.graph.nodes if node.op == "get_attr"] == ["emb.weight"]


def test_mask_of_a_tied_tensor_reaches_every_reader() -> None:
    fc, embedding = nn.Linear(4, 7, bias=False), nn.Embedding(7, 4)
    fc.weight = embedding.weight
    model = Function(lambda m, i: m.fc(m.emb(i)), emb=embedding, fc=fc).double().eval()
    index = torch.tensor([[1, 2]])
    gm = capture(model, (index,), {}).graph_module
    mask = torch.rand(7, 4) < 0.5
    annotate(gm, {"fc.weight": mask})
    fc.weight.data.mul_(mask)
    assert torch.equal(run(gm, index)[0], reference(model, index))


def test_random_numbers_are_not_folded() -> None:
    model = Function(lambda _m, x: x + torch.rand(4)).eval()
    with pytest.raises(UnsupportedError, match="Node 'rand'"):
        capture(model, (torch.ones(4),), {})


class TableNet(nn.Module):
    """A network with a layer that reads a constant table, as the position biases of Swin v2 are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Buffer(torch.randn(5, 3))
        self.bias_layer = nn.Linear(3, 4)
        self.layer = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x) + torch.relu(self.bias_layer(self.table)).sum(1)
        return result


def test_mask_of_a_layer_that_reads_a_constant_is_multiplied_in_before_it_is_evaluated() -> None:
    model, x = TableNet().double().eval(), torch.randn(2, 4, dtype=torch.float64)
    weight = model.bias_layer.weight.detach().clone()
    masks = {"bias_layer.weight": torch.rand(4, 3) < 0.5}
    gm = capture(model, (x,), {}, masks).graph_module
    annotate(gm, masks)
    table = torch.relu(nn.functional.linear(model.table, weight * masks["bias_layer.weight"], model.bias_layer.bias))
    torch.testing.assert_close(gm(x)[0], model.layer(x) + table.sum(1), rtol=1e-12, atol=1e-12)
    assert torch.equal(model.bias_layer.weight, weight)


def test_weight_computed_from_a_masked_tensor_keeps_its_zeros_as_mask() -> None:
    model = Function(lambda m, x: F.linear(x, m.fc.weight * 2), fc=nn.Linear(4, 4)).eval()
    mask = torch.eye(4, dtype=torch.bool)
    gm = capture(model, (torch.randn(1, 4),), {}, {"fc.weight": mask}).graph_module
    annotate(gm, {"fc.weight": mask})
    (layer,) = layers(gm)
    note = annotation_of(layer.node)
    assert note is not None
    assert torch.equal(note.mask, mask)
