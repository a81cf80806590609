"""Batch normalisation into the layer before it: the seven checks, one test a guard."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

from fxprune.errors import PostconditionError
from fxprune.graph import annotation_of, get_tensor, tidy
from fxprune.layer import module_path, name_bias
from fxprune.operators import fused_convolution
from fxprune.passes import FoldBatchNorm, run_passes
from fxprune.printer import format_graph
from tests.networks import (
    Function,
    apply_masks,
    build,
    difference,
    double,
    find_call,
    image,
    layers,
    random_masks,
    reference,
    run,
    run_twice,
)

NORM = torch.ops.aten._native_batch_norm_legit_no_training.default

PAIRS: dict[str, tuple[nn.Module, nn.Module, tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), (2, 3, 7)),
    "conv2d": (nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), (2, 3, 7, 6)),
    "conv2d without bias": (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), (2, 3, 7, 6)),
    "conv3d": (nn.Conv3d(2, 4, 2, groups=2), nn.BatchNorm3d(4), (2, 2, 3, 4, 5)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4), (2, 4, 6, 6)),
    "transposed": (nn.ConvTranspose2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), (2, 3, 4, 4)),
    "transposed in groups": (nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), (2, 4, 4, 4)),
    "linear": (nn.Linear(3, 4), nn.BatchNorm1d(4), (5, 3)),
    "plain numbers": (nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4, affine=False), (2, 3, 4, 4)),
}


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_applies_and_output_is_equal(name: str) -> None:
    layer, norm, shape = PAIRS[name]
    model, x = double(nn.Sequential(layer, norm, nn.ReLU())), image(*shape)
    masks = random_masks(model)
    gm = build(model, x, masks=masks)
    first, second = run_twice(gm, FoldBatchNorm())
    assert (first.modified, second.modified) == (True, False)
    assert (first.refusals, second.refusals) == ((), ())
    assert first.nodes_after == first.nodes_before - 2
    assert difference(run(gm, x)[0], reference(apply_masks(model, masks), x)) < 1e-9


def masked_network() -> tuple[nn.Module, torch.Tensor, dict[str, torch.Tensor]]:
    model = double(nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3)))
    mask = torch.zeros(3, 2, 3, 3, dtype=torch.bool)
    mask[:, 0] = True
    return model, image(1, 2, 5, 5), {"0.weight": mask}


def test_golden(golden: Callable[[str, str], None]) -> None:
    model, x, masks = masked_network()
    gm = build(model, x, masks=masks)
    run_passes(gm, (FoldBatchNorm(),))
    golden("fold_batch_norm", format_graph(gm))


def test_meta_mask_type_and_zeros_are_kept() -> None:
    model, x, masks = masked_network()
    gm = build(model, x, masks=masks)
    before = annotation_of(layers(gm)[0].node)
    run_passes(gm, (FoldBatchNorm(),))
    (layer,) = layers(gm)
    assert annotation_of(layer.node) is before
    assert module_path(layer.node) == "0"
    assert (layer.weight.target, str(layer.bias.target if layer.bias else "")) == ("0.weight", "0.bias")
    weight = get_tensor(gm, layer.weight)
    assert weight.dtype == torch.float64
    assert bool((weight[:, 1] == 0).all())


def test_users_tensors_stay_as_they_are() -> None:
    model, x, masks = masked_network()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    run_passes(build(model, x, masks=masks), (FoldBatchNorm(),))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_float32_weight_is_rounded_once() -> None:
    model = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).float()
    gm = build(model, torch.randn(1, 3, 5, 5))
    run_passes(gm, (FoldBatchNorm(),))
    norm, conv = model.double()[1], model.double()[0]  # type: ignore[index]  # a Sequential
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    expected = (conv.weight * scale[:, None, None, None]).float()
    assert torch.equal(get_tensor(gm, layers(gm)[0].weight), expected)


def test_gamma_of_zero_keeps_the_mask() -> None:
    model = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model.get_parameter("1.weight").data[1] = 0
    x = image(1, 3, 5, 5)
    gm = build(model, x)
    (record,) = run_passes(gm, (FoldBatchNorm(),))
    assert record.modified
    assert record.nnz_before == record.nnz_after == 4 * 27
    assert difference(run(gm, x)[0], reference(model, x)) < 1e-9


def test_plain_batch_norm_operator_is_folded() -> None:
    model, x = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), image(1, 3, 5, 5)
    gm = build(model, x)
    norm = find_call(gm, NORM)
    (item,) = norm.users
    with gm.graph.inserting_before(norm):
        args = (*norm.args[:5], False, *norm.args[5:], False)
        plain = gm.graph.call_function(torch.ops.aten.batch_norm.default, args)
    item.replace_all_uses_with(plain)
    tidy(gm)
    (record,) = run_passes(gm, (FoldBatchNorm(),))
    assert record.modified
    assert difference(run(gm, x)[0], reference(model, x)) < 1e-9


def conv() -> nn.Conv2d:
    return nn.Conv2d(3, 3, 3, padding=1)


def norm() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(3)


def bad_variance() -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(3)
    assert layer.running_var is not None
    layer.running_var[1] = -1.0
    return layer


REFUSALS: dict[str, tuple[Callable[..., object], dict[str, nn.Module], tuple[int, ...], str]] = {
    "output used twice": (lambda m, x: m.n(y := m.c(x)) + y, {"c": conv(), "n": norm()}, (), "2 users"),
    "shared weight": (lambda m, x: m.n(m.c(m.c(x))), {"c": conv(), "n": norm()}, (), "is read by 2 nodes"),
    "other axis": (lambda m, x: m.n(m.c(x)), {"c": nn.Linear(6, 4), "n": nn.BatchNorm1d(3)}, (2, 3, 6), "axis 1 of 3"),
    "not finite": (lambda m, x: m.n(m.c(x)), {"c": conv(), "n": bad_variance()}, (), "would not be finite"),
}


@pytest.mark.parametrize("name", sorted(REFUSALS))
def test_refuses(name: str) -> None:
    function, modules, shape, message = REFUSALS[name]
    model = Function(function, **modules).double().eval()
    x = image(*(shape or (2, 3, 6, 6)))
    gm = build(model, x)
    expected = run(gm, x)[0]
    (record,) = run_passes(gm, (FoldBatchNorm(),))
    assert not record.modified
    assert message in record.refusals[0].reason
    assert torch.equal(run(gm, x)[0].nan_to_num(), expected.nan_to_num())


def test_refuses_statistics_that_depend_on_the_input() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> object:
        mean = x.mean((0, 2, 3))
        return nn.functional.batch_norm(m.get_submodule("c")(x), mean, mean.abs())

    gm = build(double(Function(forward, c=conv())), image(2, 3, 6, 6))
    (record,) = run_passes(gm, (FoldBatchNorm(),))
    assert "computed from the input" in record.refusals[0].reason


def test_refuses_a_layer_that_has_an_epilogue() -> None:
    gm = build(double(nn.Sequential(conv(), norm())), image(1, 3, 5, 5))
    layer = layers(gm)[0]
    args = (layer.input, layer.weight, layer.bias, None, (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "relu", ())
    with gm.graph.inserting_before(layer.node):
        fused = gm.graph.call_function(fused_convolution, args)
    fused.meta.update(layer.node.meta)
    layer.node.replace_all_uses_with(fused)
    tidy(gm)
    (record,) = run_passes(gm, (FoldBatchNorm(),))
    assert "already has an epilogue" in record.refusals[0].reason


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)),  # before, not after
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)),  # something between
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),  # batch statistics
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)),
    ],
)
def test_leaves_the_rest_alone(model: nn.Module) -> None:
    x = image(2, 3, 4, 4)
    gm = build(double(model), x)
    before = format_graph(gm)
    (record,) = run_passes(gm, (FoldBatchNorm(),))
    assert (record.modified, record.refusals) == (False, ())
    assert format_graph(gm) == before


def test_ensures_finds_what_is_left() -> None:
    gm = build(double(nn.Sequential(conv(), norm())), image(1, 3, 5, 5))
    with pytest.raises(PostconditionError, match="could be folded into 'conv2d'"):
        FoldBatchNorm().ensures(gm)


def test_requires_nothing() -> None:
    FoldBatchNorm().requires(fx.GraphModule({}, fx.Graph()))


@pytest.mark.parametrize(
    ("weight", "bias"), [("weight", "bias"), ("a.0.weight", "a.0.bias"), ("a.kernel", "a.kernel_bias"), ("w", "w_bias")]
)
def test_bias_is_named_after_its_weight(weight: str, bias: str) -> None:
    assert name_bias(weight) == bias
