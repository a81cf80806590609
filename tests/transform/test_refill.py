"""`fxprune.refill` and what all changes of masks share: names, scores, records, refusals."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import fx, nn

import fxprune
from fxprune import ChangedMasks, MaskError, refill, save_masks

Masks = dict[str, torch.Tensor]


def make_net() -> nn.Module:
    """Plain, grouped, depthwise and transposed convolutions and a linear layer."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ConvTranspose2d(8, 6, 2),
        nn.Flatten(),
        nn.Linear(6 * 49, 5),
    )
    return net.eval()


def make_masks(net: nn.Module, density: float = 0.4) -> Masks:
    return {name: torch.rand(w.shape) < density for name, w in net.named_parameters() if w.dim() > 1}


def test_masks_become_whole_rows_by_the_largest_sum() -> None:
    net = make_net()
    masks = make_masks(net)
    weight, mask = net.get_parameter("0.weight").detach(), masks["0.weight"]
    found = refill(net, masks)["0.weight"]
    sums = (weight.abs() * mask).flatten(1).sum(dim=1)
    expected = torch.zeros(8, dtype=torch.bool)
    expected[sums.argsort(descending=True)[: round(int(mask.sum()) / 27)]] = True
    assert torch.equal(found, expected[:, None, None, None].expand(8, 3, 3, 3))


def test_model_and_masks_are_not_changed() -> None:
    net = make_net()
    masks = make_masks(net)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    given = {name: mask.clone() for name, mask in masks.items()}
    found = refill(net, masks)
    found["5.weight"].fill_(True)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(mask, given[name]) for name, mask in masks.items())


def test_records_say_what_changed() -> None:
    net = make_net()
    masks = make_masks(net)
    found = refill(net, masks, rate=0.2)
    assert isinstance(found, ChangedMasks)
    assert [change.name for change in found.changes] == list(masks)
    for change in found.changes:
        before, after = masks[change.name], found[change.name]
        weight = net.get_parameter(change.name).detach().abs().double()
        assert (change.nnz_before, change.nnz_after) == (int(before.sum()), int(after.sum()))
        assert change.revived == int((after & ~before).sum())
        assert change.kept_share == pytest.approx(float(weight[before & after].sum() / weight[before].sum()))
        assert change.weight_revived == pytest.approx(float(weight[after & ~before].sum()))
        assert change.density_after == change.nnz_after / weight.numel()
        assert change.density_before == change.nnz_before / weight.numel()
    kept = sum(change.weight_kept for change in found.changes) / sum(change.weight_before for change in found.changes)
    assert str(found).startswith(f"kept {100 * kept:.1f} % of the masks' |w|, dropped {100 - 100 * kept:.1f} %")


def test_transposed_convolution_is_refused_and_said(caplog: pytest.LogCaptureFixture) -> None:
    net = make_net()
    masks = make_masks(net)
    with caplog.at_level(logging.WARNING, "fxprune"):
        found = refill(net, masks)
    assert set(found.refusals) == {"3.weight"}
    assert "not its output channels" in found.refusals["3.weight"]
    assert torch.equal(found["3.weight"], masks["3.weight"])
    assert "refill left 1 of 5 masks as they were: 3.weight: a transposed convolution" in caplog.text


def test_graphs_and_programs_know_transposed_and_grouped_convolutions_too() -> None:
    net = make_net()
    masks = make_masks(net)
    expected = fxprune.regroup(net, masks)
    program = torch.export.export(net, (torch.randn(1, 3, 6, 6),))
    flat = program.module()
    assert isinstance(flat, fx.GraphModule)
    for model in (program, flat, fx.symbolic_trace(net)):
        found = fxprune.regroup(model, masks)
        assert found.refusals == expected.refusals
        assert all(torch.equal(found[name], expected[name]) for name in masks)


def test_masks_from_hooks_zeros_and_files(tmp_path: Path) -> None:
    net = make_net()
    masks = make_masks(net)
    save_masks(tmp_path / "masks.safetensors", masks)
    expected = refill(net, masks)
    found = refill(net, tmp_path / "masks.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in masks)
    for name, mask in masks.items():
        net.get_parameter(name).data.mul_(mask)
    found = refill(net)
    assert all(torch.equal(found[name], expected[name]) for name in masks)


def test_scores_of_rows_decide() -> None:
    mask = torch.zeros(8, 3, 3, 3)
    mask[:2] = 1  # two rows' worth of cells
    scores = torch.tensor([0.0, 0, 0, 9, 0, 7, 0, 0])
    found = refill(make_net(), {"0.weight": mask}, scores={"0.weight": scores})["0.weight"]
    assert found.flatten(1).any(dim=1).nonzero().flatten().tolist() == [3, 5]


def test_scores_of_pruned_cells_may_be_anything() -> None:
    net = make_net()
    masks = {"0.weight": make_masks(net)["0.weight"]}
    scores = {"0.weight": net.get_parameter("0.weight").detach().masked_fill(~masks["0.weight"], float("nan"))}
    assert torch.equal(refill(net, masks, scores=scores)["0.weight"], refill(net, masks)["0.weight"])


def test_coupled_weights_keep_the_same_rows() -> None:
    net = make_net()
    masks = make_masks(net)
    found = refill(net, masks, coupled=[["0.weight", "1.weight", "no mask"]])
    rows = [found[name].flatten(1).any(dim=1) for name in ("0.weight", "1.weight", "2.weight")]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[2], refill(net, masks)["2.weight"].flatten(1).any(dim=1))


def wrong_scores(value: float, shape: tuple[int, ...] = (8, 3, 3, 3)) -> Masks:
    return {"0.weight": torch.full(shape, value)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 2.0}, "rate is 2.0"),
        ({"multiple": 0}, "multiple is 0"),
        ({"scores": {}}, "scores has no '0.weight'"),
        ({"scores": wrong_scores(float("nan"))}, "not finite"),
        ({"scores": wrong_scores(1.0, (3, 8))}, r"have shape \[3, 8\]"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    net = make_net()
    with pytest.raises(MaskError, match=message):
        refill(net, {"0.weight": torch.ones(8, 3, 3, 3)}, **options)  # type: ignore[arg-type]  # wrong on purpose


def test_wrong_coupling() -> None:
    net = make_net()
    masks = make_masks(net)
    with pytest.raises(MaskError, match=r"'0\.weight' is in two coupled sets"):
        refill(net, masks, coupled=[["0.weight", "1.weight"], ["0.weight"]])
    with pytest.raises(MaskError, match="different numbers of rows"):
        refill(net, masks, coupled=[["0.weight", "5.weight"]])
