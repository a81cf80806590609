"""Channel elimination: the seven checks, one test a guard."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

from fxprune.channels.record import CUTS_KEY
from fxprune.errors import PreconditionError
from fxprune.graph import annotation_of, capture, get_tensor
from fxprune.layer import module_path
from fxprune.passes import EliminateChannels, run_passes
from fxprune.passes.eliminate_channels import ADDS
from fxprune.printer import format_graph
from tests.networks import apply_masks, build, difference, double, image, layers, reference, run, run_twice


def network() -> tuple[nn.Module, torch.Tensor, dict[str, torch.Tensor]]:
    """Return three convolutions, an image, and masks with dead rows, dead columns and single cells."""
    model = double(
        nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1, bias=False)
        )
    )
    masks = {f"{index}.weight": torch.ones_like(model.get_parameter(f"{index}.weight")).bool() for index in (0, 2, 4)}
    masks["0.weight"][[1, 4]] = False
    masks["2.weight"][3] = False
    masks["2.weight"][:, 0, 0, 0] = False
    masks["4.weight"][:, 6] = False
    return model, image(2, 3, 7, 6), masks


def test_applies_and_output_is_equal() -> None:
    model, x, masks = network()
    gm = build(model, x, masks=masks)
    first, second = run_twice(gm, EliminateChannels())
    assert (first.modified, second.modified) == (True, False)
    shapes = [layer.weight_shape[:2] for layer in layers(gm)]
    assert shapes == [(5, 3), (6, 5), (4, 6)]  # the padded consumer keeps one of two dead channels as a carrier
    assert first.macs_after < first.macs_before
    assert difference(run(gm, x)[0], reference(apply_masks(model, masks), x)) < 1e-9


def test_golden(golden: Callable[[str, str], None]) -> None:
    model, x, masks = network()
    gm = build(model, x, masks=masks)
    run_passes(gm, (EliminateChannels(),))
    golden("eliminate_channels", format_graph(gm))


@pytest.mark.parametrize("adds", ADDS)
def test_leaves_the_rest_alone(adds: str) -> None:
    model, x, _ = network()
    masks = {"2.weight": torch.rand(8, 6, 3, 3) > 0.3}
    gm = build(model, x, masks=masks)
    before = format_graph(gm)
    (record,) = run_passes(gm, (EliminateChannels(adds=adds),))
    assert (record.modified, record.refusals) == (False, ())
    assert format_graph(gm) == before


def test_meta_mask_and_type_are_kept() -> None:
    model, x, masks = network()
    gm = build(model, x, masks=masks)
    run_passes(gm, (EliminateChannels(),))
    for layer, path in zip(layers(gm), ("0", "2", "4"), strict=True):
        note, weight = annotation_of(layer.node), get_tensor(gm, layer.weight)
        assert note is not None
        assert (note.name, module_path(layer.node)) == (f"{path}.weight", path)
        assert note.mask.shape == weight.shape
        assert bool((weight[~note.mask] == 0).all())
        assert weight.dtype == torch.float64
        assert layer.node.meta["val"].shape[1] == weight.shape[0]


def test_constants_accumulate_in_float64_and_are_rounded_once() -> None:
    model = nn.Sequential(nn.Linear(4, 512), nn.Sigmoid(), nn.Linear(512, 3)).eval()
    mask = torch.zeros(512, 4, dtype=torch.bool)
    mask[0] = True
    x = torch.randn(2, 4)
    apply_masks(model, {"0.weight": mask})
    gm = build(model, x, masks={"0.weight": mask})
    run_passes(gm, (EliminateChannels(),))
    last = layers(gm)[-1]
    assert last.bias is not None
    weight, bias = model.get_parameter("2.weight").double(), model.get_parameter("2.bias").double()
    constants = model.get_parameter("0.bias").double().sigmoid()
    expected = (bias + weight[:, 1:] @ constants[1:]).float()
    found = get_tensor(gm, last.bias)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-7, atol=0)


def test_users_tensors_stay_as_they_are() -> None:
    model, x, masks = network()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    run_passes(build(model, x, masks=masks), (EliminateChannels(),))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("options", [EliminateChannels(round_to=0), EliminateChannels(adds="scatter")])
def test_requires_options_in_order(options: EliminateChannels) -> None:
    model, x, masks = network()
    with pytest.raises(PreconditionError, match="round_to is at least 1"):
        run_passes(build(model, x, masks=masks), (options,))


def test_requires_annotations() -> None:
    model, x, _ = network()
    gm = capture(model, (x,), {}).graph_module
    with pytest.raises(PreconditionError, match="has no annotation"):
        EliminateChannels().requires(gm)


def test_ensures_nothing_of_its_own() -> None:
    EliminateChannels().ensures(fx.GraphModule({}, fx.Graph()))


def test_rounding_fills_up_with_dead_channels_and_says_so() -> None:
    model, x, masks = network()
    gm = build(model, x, masks=masks)
    (record,) = run_passes(gm, (EliminateChannels(round_to=4),))
    assert [layer.out_channels for layer in layers(gm)] == [6, 8, 4]
    assert any("multiples of 4" in refusal.reason for refusal in record.refusals)
    assert difference(run(gm, x)[0], reference(apply_masks(model, masks), x)) < 1e-9


def test_dead_channel_that_an_unknown_operator_reads_stays_with_the_reason() -> None:
    class Sorted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Sort channels."""
            return x.sort(1)[0]

    model = double(nn.Sequential(nn.Conv2d(3, 6, 1), Sorted(), nn.Conv2d(6, 2, 1)))
    mask = torch.ones(6, 3, 1, 1, dtype=torch.bool)
    mask[:2] = False
    x = image(2, 3, 4, 4)
    gm = build(model, x, masks={"0.weight": mask})
    (record,) = run_passes(gm, (EliminateChannels(),))
    assert [refusal.node for refusal in record.refusals] == ["conv2d"]
    assert "2 of 6 channels are dead and stay" in record.refusals[0].reason
    assert "sort" in record.refusals[0].reason
    assert difference(run(gm, x)[0], reference(apply_masks(model, {"0.weight": mask}), x)) < 1e-9


def test_carrier_stays_with_the_reason() -> None:
    model, x, masks = network()
    gm = build(model, x, masks=masks)
    (record,) = run_passes(gm, (EliminateChannels(),))
    assert [refusal.reason for refusal in record.refusals if "carries" in refusal.reason]


def test_cuts_are_recorded() -> None:
    model, x, masks = network()
    gm = build(model, x, masks=masks)
    run_passes(gm, (EliminateChannels(),))
    assert len(gm.meta[CUTS_KEY]) >= 1
