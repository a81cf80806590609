"""What rows are worth on data: by definition, on every kind of layer, and nothing of the user's is changed."""

from __future__ import annotations

from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxprune
from fxprune import UnsupportedError, saliency

X = torch.randn(3, 2, 5, 5)
TARGETS = torch.randint(0, 4, (3,))


def make_net() -> nn.Module:
    """An activation that works in place, a transposed convolution and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(inplace=True), nn.ConvTranspose2d(6, 5, 2), nn.Flatten(), nn.Linear(80, 4)
    ).eval()


def loss_of(model: nn.Module, batch: object) -> torch.Tensor:
    x, targets = cast("tuple[torch.Tensor, torch.Tensor]", batch)
    return F.cross_entropy(model(x), targets, reduction="sum")


def outputs_of(net: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs of the layers, by plain calls."""
    first = net.get_submodule("0")(x)
    second = net.get_submodule("2")(first.relu())
    return {"0.weight": first, "2.weight": second, "4.weight": net.get_submodule("4")(second.flatten(1))}


@pytest.mark.parametrize("kind", ["activation_l1", "activation_l2"])
def test_activations_by_definition(kind: str) -> None:
    net = make_net()
    scores = saliency(net, [X[:1], (X[1:],)], kind)  # type: ignore[arg-type]  # one of the literals
    expected = outputs_of(net, X)
    assert scores.keys() == expected.keys()
    for name, output in expected.items():
        rows = output.detach().double().movedim(1, 0).flatten(1)
        mean = rows.abs().mean(1) if kind == "activation_l1" else rows.square().mean(1).sqrt()
        torch.testing.assert_close(scores[name], mean)


def test_taylor_by_definition() -> None:
    net = make_net()
    scores = saliency(net, [(X[:2], TARGETS[:2]), (X[2:], TARGETS[2:])], "taylor", step=loss_of)
    outputs = outputs_of(net, X)
    gradients = torch.autograd.grad(
        F.cross_entropy(outputs["4.weight"], TARGETS, reduction="sum"), list(outputs.values())
    )
    for (name, output), gradient in zip(outputs.items(), gradients, strict=True):
        terms = (output * gradient).detach().double().reshape(3, output.shape[1], -1).sum(2).abs().mean(0)
        torch.testing.assert_close(scores[name], terms, rtol=1e-5, atol=1e-7)


def test_masks_are_multiplied_in_for_the_measurement() -> None:
    net = make_net()
    mask = torch.ones(6, 2, 3, 3)
    mask[4] = 0
    net.get_parameter("0.bias").data.zero_()
    scores = saliency(net, [X], masks={"0.weight": mask})["0.weight"]
    assert float(scores[4]) == 0
    assert bool((scores[[0, 1, 2, 3, 5]] > 0).all())


def test_nothing_of_the_users_is_changed() -> None:
    net = make_net()
    net.requires_grad_(False)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    saliency(net, [(X, TARGETS)], "taylor", step=loss_of)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in net.parameters())
    assert all(not module._forward_hooks for module in net.modules())


def test_hooks_come_off_when_the_model_fails() -> None:
    net = make_net()
    with pytest.raises(RuntimeError):
        saliency(net, [torch.randn(1, 3, 5, 5)])
    assert all(not module._forward_hooks for module in net.modules())


def test_samples_without_a_batch_axis() -> None:
    net = nn.Sequential(nn.Linear(4, 3)).eval()
    torch.testing.assert_close(saliency(net, [torch.ones(4)])["0.weight"], net(torch.ones(4)).detach().double().abs())


def test_refill_takes_the_scores() -> None:
    net = make_net()
    masks = {"0.weight": torch.rand(6, 2, 3, 3) < 0.5}
    scores = saliency(net, [X])
    found = fxprune.refill(net, masks, scores=scores)["0.weight"].flatten(1).any(dim=1)
    best = scores["0.weight"].argsort(descending=True)[: int(found.sum())]
    assert set(found.nonzero().flatten().tolist()) == set(best.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "gradient"}, "kind is 'gradient'"),
        ({"kind": "taylor"}, "needs step="),
        ({"kind": "taylor", "step": lambda model, batch: model(batch)}, "return the loss"),
        ({"batches": []}, "got no batch"),
    ],
)
def test_wrong_calls(options: dict[str, object], message: str) -> None:
    arguments = {"batches": [X], **options}
    with pytest.raises(UnsupportedError, match=message):
        saliency(make_net(), **arguments)  # type: ignore[arg-type]  # wrong on purpose


def test_training_mode_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"call model\.eval\(\)"):
        saliency(make_net().train(), [X])
