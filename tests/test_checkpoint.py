"""Later checkpoints of a network, and trained small models, from one to the other by the record of channels."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F
from torchvision.models import get_model

import fxprune
from benchmarks.models import randomise_batch_norm
from fxprune.errors import ArtifactError, UnsupportedError
from tests.networks import Function, apply_masks, double, image

GATE = 1e-9
WRONG = 1e-4
"""What a state that was not carried over errs by at least."""

Masks = dict[str, torch.Tensor]
Record = list[dict[str, object]]


def cut_rows(model: nn.Module, share: float = 0.5) -> Masks:
    """Return masks without a share of the rows of every weight but the last."""
    masks = {}
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            masks[name] = torch.ones(weight.shape, dtype=torch.bool)
            masks[name][torch.rand(weight.shape[0]) < share] = False
    next(reversed(masks.values())).fill_(True)
    return masks


def train(model: nn.Module) -> None:
    """Change every parameter and every statistic a little, dead channels' biases too, as training would."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.1 * torch.rand_like(tensor))
                if "var" not in name:
                    tensor.add_(0.01 * torch.rand_like(tensor))


def error_between(found: object, expected: object) -> float:
    assert isinstance(found, torch.Tensor)
    assert isinstance(expected, torch.Tensor)
    return float((found - expected).abs().max() / expected.abs().max())


def zoo(name: str) -> nn.Module:
    model = get_model(name, weights=None)
    randomise_batch_norm(model)
    assert isinstance(model, nn.Module)
    return model.double().eval()


def chain() -> nn.Module:
    """Return a network with a carrier (behind the sigmoid), groups, a transposed layer, and layers without a bias."""
    layers = {
        "a": nn.Conv2d(3, 8, 3, padding=1),
        "n": nn.BatchNorm2d(8),
        "b": nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False),
        "c": nn.ConvTranspose2d(8, 6, 2, stride=2),
        "m": nn.BatchNorm2d(6, affine=False),
        "d": nn.Linear(6, 5, bias=False),
    }
    return double(Function(lambda m, x: m.d(m.m(m.c(F.relu(m.b(m.n(m.a(x)).sigmoid())))).mean((2, 3))), **layers))


def normalised() -> nn.Module:
    """Return a network whose layer norm is taken apart, large enough that it is worth it."""
    layers = {"a": nn.Linear(64, 64), "n": nn.LayerNorm(64), "b": nn.Linear(64, 256), "c": nn.Linear(256, 3)}
    return double(Function(lambda m, x: m.c(F.gelu(m.b(m.n(m.a(x.flatten(1).view(2, -1, 64)))))), **layers))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: zoo("resnet18"),
    "mobilenet_v2": lambda: zoo("mobilenet_v2"),
    "chain": chain,
    "normalised": normalised,
}


def small_of(model: nn.Module, masks: Masks, x: torch.Tensor) -> tuple[fx.GraphModule, Record]:
    """Return the small model, and its record as JSON gives it back."""
    compiled = fxprune.compile(model, masks, target="torch", example_inputs=x)
    assert compiled.report is not None
    assert compiled.graph_module is not None
    return compiled.graph_module, json.loads(json.dumps(compiled.report.channels))


@pytest.mark.parametrize(
    "name",
    ["chain", pytest.param("resnet18", marks=pytest.mark.slow), pytest.param("mobilenet_v2", marks=pytest.mark.slow)],
)
def test_checkpoints_go_from_one_to_the_other(name: str) -> None:
    model, x = NETWORKS[name](), image(2, 3, 32, 32)
    masks = cut_rows(model)
    small, record = small_of(model, masks, x)
    apply_masks(model, masks)
    with torch.no_grad():
        _check_back(model, record, small, masks, x)
        _check_trained_small(model, record, small, masks, x)
        _check_later(model, record, small, masks, x)


def _check_back(model: nn.Module, record: Record, small: fx.GraphModule, masks: Masks, x: torch.Tensor) -> None:
    """The state of a small model that was not trained gives the weights back, bit by bit."""
    state = fxprune.expand_state(model, record, small.state_dict(), masks, example_inputs=x)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())


def _check_trained_small(
    model: nn.Module, record: Record, small: fx.GraphModule, masks: Masks, x: torch.Tensor
) -> None:
    """A trained small model and the network with its expanded state compute the same."""
    before = model(x)
    change_live_rows(small)
    state = fxprune.expand_state(model, record, small.state_dict(), masks, example_inputs=x)
    expected = small(x)
    assert error_between(before, expected) > WRONG
    model.load_state_dict(state)
    assert error_between(model(x), expected) <= GATE


def _check_later(model: nn.Module, record: Record, small: fx.GraphModule, masks: Masks, x: torch.Tensor) -> None:
    """A network that was trained on and the small model with its state compute the same."""
    train(model)
    apply_masks(model, masks)
    expected = model(x)
    assert error_between(small(x), expected) > WRONG
    small.load_state_dict(fxprune.shrink_state(model, record, masks, example_inputs=x))
    assert error_between(small(x), expected) <= GATE


def _reads_a_norm(node: fx.Node) -> bool:
    """Return whether a layer reads the columns of a norm that was taken apart."""
    first = node.args[0] if node.args else None
    return isinstance(first, fx.Node) and first.target is torch.ops.aten.cat.default


def change_live_rows(small: fx.GraphModule) -> None:
    """Change what is left of living channels; rows of dead ones stay 0, with their bias, as does a norm's reader."""
    state = small.state_dict()
    shared = {str(node.target) for node in small.graph.nodes for user in node.users if _reads_a_norm(user)}
    with torch.no_grad():
        for name, weight in state.items():
            if not name.endswith("weight") or weight.ndim < 2 or name in shared:
                continue
            weight.mul_(1 + 0.2 * torch.rand_like(weight))
            bias = state.get(name.removesuffix("weight") + "bias")
            if bias is not None and bias.numel() == weight.shape[0]:
                bias.add_(0.1 * torch.rand_like(bias) * (weight.flatten(1) != 0).any(dim=1))


def test_a_channel_that_came_alive_is_refused() -> None:
    model, x = chain(), image(2, 3, 8, 8)
    masks = cut_rows(model)
    _, record = small_of(model, masks, x)
    masks["a.weight"][:] = True
    with pytest.raises(ArtifactError, match=r"Layer 'conv2d': the record keeps . of 8 rows.*needs.*compile the model"):
        fxprune.shrink_state(model, record, masks, example_inputs=x)


def test_a_constant_that_the_small_model_has_no_place_for_is_refused() -> None:
    model, x = double(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))), image(2, 3)
    with torch.no_grad():
        model.get_parameter("0.bias")[:2] = 0
    masks = {"0.weight": torch.tensor([[False], [False], [True], [True]]).expand(4, 3)}
    small, record = small_of(model, masks, x)
    assert "1.bias" not in small.state_dict()
    with torch.no_grad():
        model.get_parameter("0.bias")[:2] = 1
    with pytest.raises(ArtifactError, match="Layer 'linear_1': the constants of dead channels add up to a bias now"):
        fxprune.shrink_state(model, record, masks, example_inputs=x)


def test_a_bias_of_folded_constants_that_became_zero_stays_as_zeros() -> None:
    model, x = double(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))), image(2, 3)
    masks = {"0.weight": torch.tensor([[False], [False], [True], [True]]).expand(4, 3)}
    small, record = small_of(model, masks, x)
    with torch.no_grad():
        model.get_parameter("0.bias")[:2] = 0
        small.load_state_dict(fxprune.shrink_state(model, record, masks, example_inputs=x))
        apply_masks(model, masks)
        assert error_between(small(x), model(x)) <= GATE


def test_a_bias_that_the_network_does_not_have_is_refused() -> None:
    model, x = double(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))), image(2, 3)
    masks = {"0.weight": torch.tensor([[False], [False], [True], [True]]).expand(4, 3)}
    small, record = small_of(model, masks, x)
    state = small.state_dict()
    state["1.bias"] = state["1.bias"] + 1
    with pytest.raises(UnsupportedError, match=r"'1\.bias' of the small model changed, and no tensor of the network"):
        fxprune.expand_state(model, record, state, masks, example_inputs=x)


def test_a_carrier_that_changed_is_refused() -> None:
    model, x = chain(), image(2, 3, 8, 8)
    masks = {"a.weight": (torch.arange(8) % 4 > 1).view(8, 1, 1, 1).expand(8, 3, 3, 3)}
    small, record = small_of(model, masks, x)
    assert record[1]["carriers"]
    state = small.state_dict()
    dead = (state["a.weight"].flatten(1) == 0).all(dim=1)
    changes = {"a.bias": dead.double(), "a.weight": dead.double().view(-1, 1, 1, 1)}
    for (name, change), words in zip(changes.items(), ("another number", "no constant"), strict=True):
        changed = state | {name: state[name] + change}
        with pytest.raises(ArtifactError, match=f"Layer 'conv2d_1': its input channel . is the constant.*{words}"):
            fxprune.expand_state(model, record, changed, masks, example_inputs=x)


def test_rows_that_a_normalisation_multiplies_by_zero_cannot_change() -> None:
    model, x = (
        double(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, padding=1))),
        image(2, 3, 4, 4),
    )
    with torch.no_grad():
        model.get_parameter("1.weight")[0] = 0
    masks = {"0.weight": torch.ones(4, 3, 1, 1, dtype=torch.bool)}
    small, record = small_of(model, masks, x)
    state = small.state_dict()
    state["0.weight"] = state["0.weight"] + 1
    with pytest.raises(UnsupportedError, match=r"'0\.weight' of the small model changed in rows"):
        fxprune.expand_state(model, record, state, masks, example_inputs=x)


def test_a_shared_weight_cut_in_several_ways_cannot_change() -> None:
    layers = {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(6, 6, 1), "c": nn.Conv2d(6, 2, 1)}
    model, x = double(Function(lambda m, x: m.c(m.b(m.b(m.a(x)).relu()).relu()), **layers)), image(2, 3, 4, 4)
    masks = {"a.weight": torch.arange(6).view(6, 1, 1, 1).expand(6, 3, 1, 1) > 1}
    small, record = small_of(model, masks, x)
    state = small.state_dict()
    names = [name for name in state if name.startswith("b.weight")]
    assert len(names) == 2
    with pytest.raises(UnsupportedError, match="from which it was cut, 2 times"):
        fxprune.expand_state(model, record, state | {names[0]: state[names[0]] + 1}, masks, example_inputs=x)


def test_states_and_records_that_do_not_fit_are_refused() -> None:
    model, x = chain(), image(2, 3, 8, 8)
    masks = cut_rows(model)
    small, record = small_of(model, masks, x)
    with pytest.raises(ArtifactError, match=r"has 'a.weight' not at all; the record and the network give it with"):
        fxprune.expand_state(model, record, {}, masks, example_inputs=x)
    with pytest.raises(ArtifactError, match="Entry 0 of the record of channels has layer; it needs biased, carriers"):
        fxprune.shrink_state(model, [{"layer": "conv2d"}], masks, example_inputs=x)
    with pytest.raises(ArtifactError, match="Entry 0 of the record of channels has str"):
        fxprune.shrink_state(model, ["conv2d"], masks, example_inputs=x)  # type: ignore[list-item]
    with pytest.raises(ArtifactError, match="the record keeps all channels"):
        fxprune.shrink_state(model, record[1:], masks, example_inputs=x)
    with pytest.raises(UnsupportedError, match="example_inputs is None"):
        fxprune.shrink_state(model, record, masks, example_inputs=None)  # type: ignore[arg-type]
    assert small.state_dict().keys() == fxprune.shrink_state(model, record, masks, example_inputs=x).keys()
