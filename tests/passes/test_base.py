"""The runner's promises, one by one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import fx, nn

from fxprune.annotation import META_KEY
from fxprune.errors import FxpruneError, PostconditionError, PreconditionError, VerifyError
from fxprune.graph import annotation_of
from fxprune.passes.base import GraphCounts, Pass, PassRecord, PassResult, Refusal, count_graph, run_passes
from tests.networks import Function, build, find_call, image, layers

RELU = torch.ops.aten.relu.default


@dataclass(frozen=True)
class DropRelu(Pass):
    """Take every relu out, and say what it saw in `ensures`."""

    limit: int = 9
    preserves_output: ClassVar[bool] = False

    def requires(self, _: fx.GraphModule) -> None:
        if self.limit < 0:
            raise PreconditionError("limit is negative")

    def apply(self, gm: fx.GraphModule) -> PassResult:
        nodes = [node for node in gm.graph.nodes if node.target is RELU][: self.limit]
        for node in nodes:
            node.replace_all_uses_with(node.all_input_nodes[0])
        return PassResult(bool(nodes), (Refusal("relu", "it is a test"),) if not nodes else ())

    def ensures(self, gm: fx.GraphModule) -> None:
        left = [node.name for node in gm.graph.nodes if node.target is RELU]
        if left:
            raise PostconditionError(f"left: {left}")


@dataclass(frozen=True)
class BreakMask(DropRelu):
    """Leave an annotation where none belongs."""

    def apply(self, gm: fx.GraphModule) -> PassResult:
        find_call(gm, RELU).meta[META_KEY] = annotation_of(layers(gm)[0].node)
        return PassResult(True)


@pytest.fixture
def gm() -> fx.GraphModule:
    """One layer with a mask, one relu."""
    mask = torch.eye(3, dtype=torch.bool)
    model = Function(lambda m, x: m.fc(x).relu(), fc=nn.Linear(3, 3))
    return build(model.double().eval(), image(2, 3), masks={"fc.weight": mask})


def test_record_says_what_happened(gm: fx.GraphModule) -> None:
    (record,) = run_passes(gm, (DropRelu(),))
    assert (record.name, record.options, record.modified) == ("drop_relu", "DropRelu(limit=9)", True)
    assert (record.nodes_before, record.nodes_after) == (2, 1)
    assert (record.nnz_before, record.macs_after) == (3, 18)
    assert record.seconds > 0


def test_ensures_sees_the_changed_and_tidied_graph(gm: fx.GraphModule) -> None:
    run_passes(gm, (DropRelu(),))
    assert all(node.target is not RELU for node in gm.graph.nodes)


def test_second_run_changes_nothing_and_keeps_refusals(gm: fx.GraphModule) -> None:
    first, second = run_passes(gm, (DropRelu(), DropRelu()))
    assert (first.modified, second.modified) == (True, False)
    assert second.refusals == (Refusal("relu", "it is a test"),)


def test_graph_is_verified_before_the_first_pass(gm: fx.GraphModule) -> None:
    find_call(gm, RELU).meta[META_KEY] = annotation_of(layers(gm)[0].node)
    with pytest.raises(VerifyError) as caught:
        run_passes(gm, (DropRelu(),))
    assert not getattr(caught.value, "__notes__", [])


@pytest.mark.parametrize(
    ("step", "error"),
    [(BreakMask(), VerifyError), (DropRelu(limit=-1), PreconditionError), (DropRelu(limit=0), PostconditionError)],
)
def test_errors_name_the_pass(gm: fx.GraphModule, step: Pass, error: type[FxpruneError]) -> None:
    with pytest.raises(error) as caught:
        run_passes(gm, (step,))
    assert caught.value.__notes__ == [f"while running pass 1 of 1: {step!r}"]


def test_one_info_line_a_pass_and_one_debug_line_a_refusal(
    gm: fx.GraphModule, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="fxprune.passes"):
        run_passes(gm, (DropRelu(), DropRelu()))
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert len(lines) == 2
    assert lines[0].startswith("drop_relu: modified, nodes 2 -> 1, nnz 3 -> 3, macs 18 -> 18, refusals 0, ")
    assert "drop_relu: refused relu: it is a test" in caplog.text


def test_observers_see_input_and_every_pass(gm: fx.GraphModule) -> None:
    seen: list[tuple[int, str, int]] = []

    def watch(index: int, gm: fx.GraphModule, record: PassRecord) -> None:
        seen.append((index, record.name, len(layers(gm))))

    run_passes(gm, (DropRelu(), DropRelu()), (watch,))
    assert seen == [(0, "input", 1), (1, "drop_relu", 1), (2, "drop_relu", 1)]


def test_dump_has_one_numbered_file_a_step(gm: fx.GraphModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXPRUNE_DUMP", str(tmp_path))
    run_passes(gm, (DropRelu(), DropRelu()))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000_input.txt",
        "001_drop_relu.txt",
        "002_drop_relu.txt",
    ]
    lines = (tmp_path / "002_drop_relu.txt").read_text().splitlines()
    assert lines[0].startswith("# drop_relu: unchanged, nodes 1 -> 1")
    assert lines[0].endswith("DropRelu(limit=9)")
    assert lines[1] == "# refused relu: it is a test"
    assert lines[2].startswith("%")


def test_shared_weight_counts_once_and_its_work_twice() -> None:
    gm = build(Function(lambda m, x: m.fc(m.fc(x)), fc=nn.Linear(3, 3)).double().eval(), image(2, 3))
    assert count_graph(gm) == GraphCounts(nodes=2, nnz=9, macs=36)


@pytest.mark.parametrize(("count", "text"), [(7, "7"), (1820000, "1.82M"), (3.6e9, "3.6G"), (1500, "1.5k")])
def test_counts_are_short(count: float, text: str) -> None:
    number = int(count)
    record = PassRecord("x", "X()", False, 0.041, 1, 1, number, number, 0, 0)
    assert f"nnz {text} -> {text}," in str(record)
    assert str(record).endswith("41 ms")


def test_pass_is_data() -> None:
    assert DropRelu(3) == DropRelu(limit=3)
    assert repr(DropRelu(3)) == "DropRelu(limit=3)"
