"""The pass that gives masked layers their row groups: the seven checks, one test a guard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import fx, nn

from fxprune.annotation import META_KEY, RowGroupPattern
from fxprune.errors import PostconditionError, PreconditionError, VerifyError
from fxprune.graph import annotate, annotation_of, capture
from fxprune.passes.base import run_passes
from fxprune.passes.group_rows import GroupRows
from fxprune.printer import format_graph
from fxprune.structure.tiles import Efficiency
from fxprune.verify import verify

EFFICIENCY: Efficiency = ((1, 0.22), (2, 0.39), (4, 0.65), (8, 0.85), (16, 0.9), (32, 0.97))
GROUP_ROWS = GroupRows(EFFICIENCY)


class SmallNet(nn.Module):
    """One layer of each kind that the pass looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 8, 3, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 1, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 2)
        self.dense = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.dense(self.up(self.depthwise(self.grouped(self.conv(x).relu()))))
        result: torch.Tensor = self.fc(y.mean((2, 3)))
        return result


def half_of(parameter: torch.Tensor) -> torch.Tensor:
    """Keep a random half of the cells, never all; rows 2i and 2i + 1 are equal."""
    pairs = torch.rand(-(-parameter.shape[0] // 2), *parameter.shape[1:]) < 0.5
    pairs.flatten(1)[0, -1] = False
    return pairs.repeat_interleave(2, 0)[: parameter.shape[0]]


def build(names: tuple[str, ...]) -> fx.GraphModule:
    """Capture the small network with half masks on some layers."""
    model = SmallNet().double().eval()
    gm = capture(model, (torch.randn(2, 4, 7, 7, dtype=torch.float64),), {}).graph_module
    annotate(gm, {f"{name}.weight": half_of(model.get_submodule(name).get_parameter("weight")) for name in names})
    return gm


@pytest.fixture(scope="module")
def unmasked() -> fx.GraphModule:
    """The small network without a mask; no test changes it."""
    return build(())


def patterns_of(gm: fx.GraphModule) -> Mapping[str, RowGroupPattern | None]:
    """Return the pattern of every weight by its name."""
    notes = filter(None, map(annotation_of, gm.graph.nodes))
    return {note.name: note.pattern for note in notes}


def test_applies_to_convolutions_and_linear_layers() -> None:
    gm = build(("conv", "grouped", "fc"))
    result = GROUP_ROWS.apply(gm)
    assert result.modified
    assert result.refusals == ()
    verify(gm)
    patterns = patterns_of(gm)
    for name, rows in (("conv.weight", 16), ("grouped.weight", 8), ("fc.weight", 12)):
        pattern = patterns[name]
        assert pattern is not None
        assert pattern.shape[0] == rows
        assert all(group.height % 2 == 0 for group in pattern.groups), "equal rows were torn apart"


def test_row_groups_stay_inside_conv_groups() -> None:
    gm = build(("grouped",))
    GROUP_ROWS.apply(gm)
    pattern = patterns_of(gm)["grouped.weight"]
    assert pattern is not None
    assert all(len(np.unique(group.rows // 4)) == 1 for group in pattern.groups)


def test_leaves_dense_layers_alone(unmasked: fx.GraphModule) -> None:
    gm = build(("conv",))
    GROUP_ROWS.apply(gm)
    assert [name for name, pattern in patterns_of(gm).items() if pattern is not None] == ["conv.weight"]
    before = format_graph(unmasked)
    assert not GROUP_ROWS.apply(unmasked).modified
    assert format_graph(unmasked) == before


def test_second_run_changes_nothing() -> None:
    gm = build(("conv", "grouped", "depthwise", "fc"))
    first, second = GROUP_ROWS.apply(gm), GROUP_ROWS.apply(gm)
    assert first.modified
    assert not second.modified
    assert first.refusals == second.refusals


def test_another_target_finds_other_groups() -> None:
    gm = build(("conv",))
    GROUP_ROWS.apply(gm)
    assert GroupRows(((1, 1.0),)).apply(gm).modified


@pytest.mark.parametrize(("kind", "heights"), [(torch.float32, {2: 8}), (torch.bfloat16, {16: 1})])
def test_layers_in_16_bits_have_a_table_of_their_own(kind: torch.dtype, heights: dict[int, int]) -> None:
    """Pairs of rows share columns; a target whose kernels in 16 bits need tall groups joins them."""
    model = nn.Linear(12, 16).eval().to(kind)
    gm = capture(model, (torch.randn(3, 12, dtype=kind),), {}).graph_module
    annotate(gm, {"weight": half_of(model.weight)})
    GroupRows(((1, 0.5), (2, 1.0)), narrow=((16, 1.0),)).apply(gm)
    (annotation,) = filter(None, map(annotation_of, gm.graph.nodes))
    assert annotation.pattern is not None
    assert annotation.pattern.heights() == heights


def test_requires_annotations() -> None:
    gm = build(("conv",))
    for node in gm.graph.nodes:
        node.meta.pop(META_KEY, None)
    with pytest.raises(PreconditionError, match="no annotation; run annotate"):
        GROUP_ROWS.requires(gm)


@pytest.mark.parametrize("efficiency", [(), ((4, 0.6), (2, 0.4)), ((1, -0.2),)])
def test_requires_an_efficiency_table_in_order(unmasked: fx.GraphModule, efficiency: Efficiency) -> None:
    with pytest.raises(PreconditionError, match="Pass the table of the target"):
        GroupRows(efficiency).requires(unmasked)
    if efficiency:
        with pytest.raises(PreconditionError, match="Pass the table of the target"):
            GroupRows(EFFICIENCY, efficiency).requires(unmasked)


def test_ensures_that_every_masked_layer_has_groups() -> None:
    gm = build(("conv", "depthwise", "up"))
    with pytest.raises(PostconditionError, match="no groups"):
        GROUP_ROWS.ensures(gm)
    GROUP_ROWS.apply(gm)
    GROUP_ROWS.ensures(gm)


def test_keeps_everything_else_of_the_annotation_and_the_node() -> None:
    gm = build(("conv", "fc"))
    before = {node.name: (dict(node.meta), annotation_of(node), node.args) for node in gm.graph.nodes}
    GROUP_ROWS.apply(gm)
    for node in gm.graph.nodes:
        meta, annotation, args = before[node.name]
        assert node.args == args
        assert {key: value for key, value in node.meta.items() if key != META_KEY} == {
            key: value for key, value in meta.items() if key != META_KEY
        }
        new = annotation_of(node)
        if annotation is not None and new is not None:
            assert new.mask is annotation.mask
            assert new.name == annotation.name


def test_output_is_bit_for_bit_the_same() -> None:
    gm = build(("conv", "grouped", "fc"))
    inputs = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    expected = gm(inputs)[0]
    run_passes(gm, (GROUP_ROWS,))
    torch.testing.assert_close(gm(inputs)[0], expected, rtol=0, atol=0)


def test_refuses_depthwise() -> None:
    gm = build(("depthwise",))
    (refusal,) = GROUP_ROWS.apply(gm).refusals
    assert "no two rows share an input channel" in refusal.reason
    assert patterns_of(gm)["depthwise.weight"] is None


def test_refuses_transposed_convolution() -> None:
    gm = build(("up",))
    (refusal,) = GROUP_ROWS.apply(gm).refusals
    assert "transposed convolution stays dense" in refusal.reason
    assert patterns_of(gm)["up.weight"] is None


def test_empty_mask_gets_a_pattern_without_groups() -> None:
    model = SmallNet().eval()
    gm = capture(model, (torch.randn(1, 4, 7, 7),), {}).graph_module
    annotate(gm, {"fc.weight": torch.zeros(12, 6, dtype=torch.bool)})
    GROUP_ROWS.apply(gm)
    assert patterns_of(gm)["fc.weight"] == RowGroupPattern((12, 6), ())


def test_equal_masks_are_covered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).eval()
    gm = capture(model, (torch.randn(1, 6),), {}).graph_module
    mask = torch.rand(6, 6) < 0.5
    mask[0, 0] = False
    annotate(gm, {"0.weight": mask, "2.weight": mask.clone()})
    covered = []

    def count(
        cells: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], groups: int, table: Efficiency
    ) -> RowGroupPattern:
        covered.append((groups, table))
        return RowGroupPattern((cells.shape[0], cells.shape[1]), ())

    monkeypatch.setattr("fxprune.passes.group_rows.cover_rows", count)
    GROUP_ROWS.apply(gm)
    assert covered == [(1, EFFICIENCY)]


def test_a_pattern_that_misses_a_weight_is_caught() -> None:
    gm = build(("conv",))
    GROUP_ROWS.apply(gm)
    (node,) = [node for node in gm.graph.nodes if getattr(annotation_of(node), "pattern", None)]
    annotation = annotation_of(node)
    assert annotation is not None
    assert annotation.pattern is not None
    short = RowGroupPattern(annotation.pattern.shape, annotation.pattern.groups[1:])
    node.meta[META_KEY] = replace(annotation, pattern=short)
    with pytest.raises(VerifyError, match="misses"):
        verify(gm)
