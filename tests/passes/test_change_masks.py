"""The passes that change masks, refill and regroup: the seven checks, one test a guard."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import fx, nn

import fxprune
from fxprune import ChangedMasks
from fxprune.annotation import META_KEY, WeightAnnotation
from fxprune.errors import PostconditionError, PreconditionError, VerifyError
from fxprune.graph import annotate, annotation_of, capture, get_tensor
from fxprune.layer import module_path
from fxprune.passes import FoldBatchNorm, GroupRows, Pass, Refill, Regroup, default_pipeline, run_passes
from fxprune.passes.final_masks import FinalMasks
from fxprune.printer import format_graph
from fxprune.structure.paper import PaperRule
from fxprune.structure.refill import RefillRule
from fxprune.structure.regroup import VectorRule
from fxprune.transform.layers import find_scores
from fxprune.verify import verify
from tests.networks import apply_masks, difference, double, image, layers, random_masks, reference, run, run_twice

EFFICIENCY = ((1, 0.22), (2, 0.39), (4, 0.65), (8, 0.85), (16, 0.9), (32, 0.97))
PASSES: dict[str, Pass] = {
    "refill": Refill(),
    "refill, as published": Refill(RefillRule(parity=True)),
    "refill+": Refill(RefillRule(rate=0.2)),
    "regroup": Regroup(),
    "regroup for a target": Regroup(VectorRule(efficiency=EFFICIENCY)),
    "regroup, one budget": Regroup(VectorRule(budget="global")),
    "regroup, as published": Regroup(PaperRule(min_rows=1)),
}
each_pass = pytest.mark.parametrize("step", PASSES.values(), ids=PASSES.keys())


def network() -> nn.Module:
    """A layer of each kind; the third convolution has no mask."""
    return double(
        nn.Sequential(
            nn.Conv2d(4, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Conv2d(24, 16, 3, groups=2),
            nn.Conv2d(16, 16, 1),
            nn.Flatten(),
            nn.Linear(16 * 9, 32),
        )
    )


def make_masks(model: nn.Module) -> dict[str, torch.Tensor]:
    masks = random_masks(model, 0.4)
    del masks["4.weight"]
    return masks


X = (2, 4, 5, 5)


def build(model: nn.Module, masks: dict[str, torch.Tensor], shape: tuple[int, ...] = X) -> fx.GraphModule:
    """Capture and annotate with scores, as `compile` does."""
    gm = capture(model, (image(*shape),), {}).graph_module
    annotate(gm, masks, find_scores(model, masks))
    return gm


def masks_of(gm: fx.GraphModule) -> dict[str, torch.Tensor]:
    return {note.name: note.mask for note in map(annotation_of, gm.graph.nodes) if note is not None}


@each_pass
def test_applies_and_the_output_is_that_of_the_new_masks(step: Pass) -> None:
    model = network()
    masks, x = make_masks(model), image(*X)
    gm = build(model, masks)
    first, second = run_twice(gm, step)
    assert (first.modified, second.modified) == (True, False)
    new = masks_of(gm)
    assert any(not torch.equal(new[name], masks[name]) for name in masks)
    assert difference(run(gm, x)[0], reference(apply_masks(model, new), x)) < 1e-9


@each_pass
def test_after_folding_the_masks_are_the_same(step: Pass) -> None:
    model = network()
    masks, x = make_masks(model), image(*X)
    plain, folded = build(model, masks), build(model, masks)
    run_passes(plain, (step,))
    run_passes(folded, (FoldBatchNorm(), step))
    assert all(torch.equal(mask, masks_of(folded)[name]) for name, mask in masks_of(plain).items())
    assert difference(run(folded, x)[0], run(plain, x)[0]) < 1e-9


@each_pass
def test_leaves_final_masks_and_dense_layers_alone(step: Pass) -> None:
    model = network()
    masks = make_masks(model)
    gm = capture(model, (image(*X),), {}).graph_module
    annotate(gm, masks)
    before = format_graph(gm)
    (record,) = run_passes(gm, (step,))
    assert (record.modified, record.refusals) == (False, ())
    assert format_graph(gm) == before
    assert all(torch.equal(mask, masks_of(gm)[name]) for name, mask in masks.items())
    gm = build(model, masks)
    run_passes(gm, (step,))
    assert masks_of(gm)["4.weight"].all()


@each_pass
def test_requires_annotations(step: Pass) -> None:
    model = network()
    gm = build(model, make_masks(model))
    for node in gm.graph.nodes:
        node.meta.pop(META_KEY, None)
    with pytest.raises(PreconditionError, match="no annotation; run annotate"):
        step.requires(gm)


@each_pass
def test_requires_to_come_before_row_groups(step: Pass) -> None:
    model = network()
    gm = build(model, make_masks(model))
    GroupRows(EFFICIENCY).apply(gm)
    with pytest.raises(PreconditionError, match=f"run {step.name} before group_rows"):
        step.requires(gm)


@each_pass
def test_ensures_that_masks_are_final(step: Pass) -> None:
    model = network()
    gm = build(model, make_masks(model))
    with pytest.raises(PostconditionError, match="not final"):
        step.ensures(gm)
    run_passes(gm, (step,))
    step.ensures(gm)


@each_pass
def test_meta_type_and_the_users_tensors_are_kept(step: Pass) -> None:
    model = network().float()
    masks = make_masks(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gm = capture(model, (image(*X).float(),), {}).graph_module
    annotate(gm, masks, find_scores(model, masks))
    before = {node.name: {key: value for key, value in node.meta.items() if key != META_KEY} for node in gm.graph.nodes}
    run_passes(gm, (step,))
    assert [module_path(layer.node) for layer in layers(gm)] == ["0", "3", "4", "6"]
    for node in gm.graph.nodes:
        kept = {key: value for key, value in node.meta.items() if key not in (META_KEY, "val")}
        assert kept == {key: value for key, value in before[node.name].items() if key != "val"}
    assert all(get_tensor(gm, layer.weight).dtype == torch.float32 for layer in layers(gm))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


DEFINITIONS: dict[str, Callable[[nn.Module, dict[str, torch.Tensor]], ChangedMasks]] = {
    "refill": fxprune.refill,
    "refill+": lambda model, masks: fxprune.refill(model, masks, rate=0.2),
    "regroup": lambda model, masks: fxprune.regroup(model, masks, efficiency=EFFICIENCY),
}


@pytest.mark.parametrize("structure", DEFINITIONS)
def test_masks_equal_the_definition(structure: str) -> None:
    model = network()
    masks = make_masks(model)
    gm = build(model, masks)
    final = FinalMasks(masks)
    run_passes(gm, default_pipeline(EFFICIENCY, structure), (final,))
    expected = DEFINITIONS[structure](model, masks)
    assert final.masks.keys() == masks.keys()
    assert all(torch.equal(final.masks[name], expected[name]) for name in masks)


def test_refuses_transposed_and_depthwise_in_the_open() -> None:
    model = double(nn.Sequential(nn.ConvTranspose2d(4, 8, 2), nn.Conv2d(8, 8, 3, groups=8)))
    masks = random_masks(model)
    for step, count in ((Refill(), 1), (Regroup(), 2)):
        gm = build(model, masks)
        (record,) = run_passes(gm, (step,))
        reasons = [refusal.reason for refusal in record.refusals]
        assert len(reasons) == count
        assert all(reason.startswith("the mask stays as it is: ") for reason in reasons)
        assert "a transposed convolution" in reasons[0]
        assert torch.equal(masks_of(gm)["0.weight"], masks["0.weight"])
        x = image(*X)
        assert difference(run(gm, x)[0], reference(apply_masks(double(model), masks_of(gm)), x)) < 1e-9


def test_every_input_shape_gets_the_same_masks_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    masks, step = make_masks(model), Regroup()
    first, second = build(model, masks), build(model, masks, (3, *X[1:]))
    run_passes(first, (step,))
    monkeypatch.setattr("fxprune.passes.regroup.regroup_layers", lambda *_: pytest.fail("computed again"))
    run_passes(second, (step,))
    assert all(torch.equal(mask, masks_of(second)[name]) for name, mask in masks_of(first).items())


def test_options_are_data() -> None:
    text = repr(PASSES["regroup for a target"])
    names = {"Regroup": Regroup, "VectorRule": VectorRule}
    assert eval(text, names) == PASSES["regroup for a target"]
    assert PASSES["refill"] != PASSES["refill+"]


def test_a_weight_that_is_not_zero_is_caught_once_the_mask_is_final() -> None:
    model = network()
    gm = build(model, make_masks(model))
    verify(gm)
    for node in gm.graph.nodes:
        note = annotation_of(node)
        if note is not None:
            node.meta[META_KEY] = WeightAnnotation(note.name, note.mask)
    with pytest.raises(VerifyError, match="not zero where the mask is False"):
        verify(gm)


@given(
    rows=st.integers(1, 40),
    channels=st.integers(1, 6),
    density=st.floats(0, 1),
    name=st.sampled_from(sorted(PASSES)),
    seed=st.integers(0, 999),
)
def test_promises_on_random_masks(rows: int, channels: int, density: float, name: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = double(nn.Sequential(nn.Linear(channels * 3, rows)))
    masks = random_masks(model, density)
    gm = build(model, masks, (2, channels * 3))
    first, second = run_twice(gm, PASSES[name])
    assert (first.modified, second.modified) == (True, False)
    new, x = masks_of(gm)["0.weight"], image(2, channels * 3)
    assert first.refusals or bool(new.any())
    assert not first.refusals or torch.equal(new, masks["0.weight"])
    expected = reference(apply_masks(model, {"0.weight": new}), x)
    assert float((run(gm, x)[0] - expected).abs().max()) < 1e-9
