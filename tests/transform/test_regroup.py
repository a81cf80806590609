"""`fxprune.regroup` on models: options arrive, small layers are grouped, compiling finds the groups again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fxprune
from fxprune import MaskError, regroup
from tests.compiling import TOLERANCE, largest_difference, run_masked

Masks = dict[str, torch.Tensor]


def make_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(16, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 32, 1), nn.Flatten(), nn.Linear(32 * 16, 40)
    ).eval()


def make_masks(net: nn.Module, density: float = 0.3) -> Masks:
    """The largest weights of each layer."""
    return {name: w.abs() >= w.abs().quantile(1 - density) for name, w in net.named_parameters() if w.dim() > 1}


def test_rows_of_a_group_share_their_columns() -> None:
    net = make_net()
    found = regroup(net, make_masks(net))
    for change in found.changes:
        rows = {tuple(row) for row in found[change.name].flatten(1).int().tolist()}
        assert len(rows) <= -(-found[change.name].shape[0] // 8)
        assert change.density_after == pytest.approx(0.3, abs=0.05)
        assert not change.refused
        assert sum(height * count for height, count in change.heights.items()) <= found[change.name].shape[0]


def test_paper_method_refuses_small_layers_in_the_open() -> None:
    net = make_net()
    masks = make_masks(net)
    found = regroup(net, masks, method="paper")
    assert set(found.refusals) == set(masks)
    assert all("a part, below the 17" in reason for reason in found.refusals.values())
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())


def test_paper_method_on_a_wide_layer() -> None:
    net = nn.Sequential(nn.Linear(200, 256))
    masks = make_masks(net, 0.33)
    correct, inflated = regroup(net, masks, method="paper"), regroup(net, masks, method="paper", bug_compat=True)
    assert correct.refusals == inflated.refusals == {}
    assert correct.changes[0].density_after < inflated.changes[0].density_after


def test_vectors_keep_more_than_the_papers_rule_at_equal_storage() -> None:
    net = nn.Sequential(nn.Conv2d(128, 256, 3))
    masks = make_masks(net, 0.2)
    paper = regroup(net, masks, method="paper").changes[0]
    ours = regroup(net, masks, density=paper.density_after).changes[0]
    assert ours.nnz_after <= paper.nnz_after
    assert ours.kept_share >= paper.kept_share + 0.05


def test_options_arrive() -> None:
    net = make_net()
    masks = make_masks(net)
    assert set(regroup(net, masks, height=16).changes[0].heights) == {16}
    assert regroup(net, masks, density=0.5).changes[0].density_after == pytest.approx(0.5, abs=0.05)
    assert regroup(net, masks, leftovers="cover").changes[0].kept_share == 1
    kernels = regroup(net, masks, unit="kernel")["0.weight"].flatten(2)
    assert torch.equal(kernels.all(dim=2), kernels.any(dim=2))
    tiles = regroup(net, masks, tile=16)["0.weight"].flatten(1)
    assert {int(row.sum()) % 16 for row in tiles} == {0}
    assert set(regroup(net, masks, efficiency=((4, 0.01), (32, 1.0))).changes[0].heights) == {32}
    flat = regroup(net, masks, budget="global")
    assert sum(c.nnz_after for c in flat.changes) <= sum(int(mask.sum()) for mask in masks.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "hmetis"}, "'vectors' or 'paper'"),
        ({"density": 2.0}, r"density is 2.0"),
        ({"unit": "block"}, "unit is 'block'"),
        ({"leftovers": "time"}, "give efficiency"),
        ({"method": "paper", "parts": 0}, "out of range"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    net = make_net()
    with pytest.raises(MaskError, match=message):
        regroup(net, make_masks(net), **options)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("structure", ["refill", "refill+", "regroup"])
def test_compile_computes_the_model_under_the_new_masks(structure: str) -> None:
    net, x = make_net(), torch.randn(2, 16, 4, 4)
    masks = make_masks(net)
    state = copy.deepcopy(net.state_dict())
    compiled = fxprune.compile(net, masks, example_inputs=x, structure=structure, options={"measure": False})
    assert largest_difference(compiled(x), run_masked(net, compiled.masks, x)) <= TOLERANCE
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    first = str(compiled.report).splitlines()[0]
    assert first.startswith(f"{structure}: the function changed: kept ")
    assert "dropped" in first
    assert "retrain with compiled.masks" in first
    exact = fxprune.compile(net, compiled.masks, example_inputs=x, options={"measure": False})
    assert torch.equal(exact(x), compiled(x))
    assert str(exact.report).startswith("exact: ")


def test_masks_that_stay_are_called_exact() -> None:
    net, x = make_net(), torch.randn(2, 16, 4, 4)
    masks = {"0.weight": torch.ones(64, 16, 3, 3)}
    compiled = fxprune.compile(net, masks, example_inputs=x, structure="regroup", options={"measure": False})
    assert str(compiled.report).startswith("regroup: no mask changed, the result equals the masked model")


def test_compile_changes_masks_as_the_functions_do() -> None:
    net, x = make_net(), torch.randn(2, 16, 4, 4)
    masks = make_masks(net)
    expected = {"refill": fxprune.refill(net, masks), "refill+": fxprune.refill(net, masks, rate=0.2)}
    for structure, new in expected.items():
        compiled = fxprune.compile(net, masks, example_inputs=x, structure=structure, options={"measure": False})
        assert all(torch.equal(compiled.masks[name], new[name]) for name in masks)
        assert str(new) in str(compiled.report).splitlines()[0]


def test_batch_norm_does_not_change_the_choice() -> None:
    net = nn.Sequential(nn.Conv2d(4, 16, 3, bias=False), nn.BatchNorm2d(16)).eval()
    net.get_parameter("1.weight").data.copy_(torch.logspace(-2, 2, 16))
    masks, x = make_masks(nn.Sequential(net[0])), torch.randn(1, 4, 6, 6)
    compiled = fxprune.compile(net, masks, example_inputs=x, structure="refill", options={"measure": False})
    assert torch.equal(compiled.masks["0.weight"], fxprune.refill(net, masks)["0.weight"])


def test_masks_are_known_once_compiled_and_the_same_for_every_shape() -> None:
    net = make_net()
    masks = make_masks(net)
    compiled = fxprune.compile(net, masks, structure="regroup", options={"measure": False})
    with pytest.raises(fxprune.FxpruneError, match="Nothing was compiled yet"):
        _ = compiled.masks
    compiled(torch.randn(1, 16, 4, 4))
    first = compiled.masks
    compiled(torch.randn(3, 16, 4, 4))
    assert all(torch.equal(mask, first[name]) for name, mask in compiled.masks.items())
    assert str(compiled.report).startswith("regroup: the function changed")


def test_not_a_number_in_a_pruned_cell_does_not_come_back() -> None:
    net, x = nn.Sequential(nn.Linear(8, 8)).eval(), torch.randn(2, 8)
    mask = torch.rand(8, 8) < 0.5
    mask[0, 0] = False
    net.get_parameter("0.weight").data[0] = 10.0
    net.get_parameter("0.weight").data[0, 0] = float("nan")
    compiled = fxprune.compile(
        net, {"0.weight": mask}, example_inputs=x, structure="refill", options={"measure": False}
    )
    assert compiled.masks["0.weight"][0].all()
    assert bool(compiled(x).isfinite().all())


def test_tied_weights_have_one_mask() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(16, 16)
            self.b = nn.Linear(16, 16)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.b(self.a(x).relu())
            return result

    net, x = Tied().eval(), torch.randn(2, 16)
    mask = torch.rand(16, 16) < 0.4
    compiled = fxprune.compile(
        net,
        {"a.weight": mask, "b.weight": mask},
        example_inputs=x,
        structure="regroup",
        options={"measure": False},
    )
    assert torch.equal(compiled.masks["a.weight"], compiled.masks["b.weight"])
    assert largest_difference(compiled(x), run_masked(net, {"a.weight": compiled.masks["a.weight"]}, x)) <= TOLERANCE
