"""The report: sums, the printed table, the dictionary, the Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from fxprune.report import TABLE_WIDTH, CompileReport, LayerReport, format_count

STEM = LayerReport(
    name="conv1",
    operator="conv2d 7x7 s2 g1",
    weight_shape=(64, 3, 7, 7),
    output_shape=(1, 64, 112, 112),
    macs_dense=118_013_952,
    macs_kept=118_013_952,
    macs_run=118_013_952,
    density=1.0,
    stored_density=1.0,
    heights={},
    kept_weight=1.0,
    kernel="dense: torch",
    predicted_us=None,
    measured_us=701.2,
    dense_us=701.2,
    reason="no mask",
    parameters=9408,
    size_bytes=37_632,
    dense_size_bytes=37_632,
)
CONV = LayerReport(
    name="layer1.0.conv2",
    operator="conv2d 3x3 s1 g1",
    weight_shape=(64, 64, 3, 3),
    output_shape=(1, 64, 56, 56),
    macs_dense=115_605_504,
    macs_kept=23_121_101,
    macs_run=23_500_000,
    density=0.2,
    stored_density=0.2033,
    heights={1: 3, 32: 2},
    kept_weight=0.5512,
    kernel="rows 32 lanes16 q2 p14",
    predicted_us=130.4,
    measured_us=141.7,
    dense_us=655.0,
    reason="measured 142 us, dense 655 us",
    parameters=7373,
    size_bytes=30_500,
    dense_size_bytes=147_456,
)
REPORT = CompileReport(
    target="cpu",
    threads=2,
    input_shapes=((1, 3, 224, 224),),
    layers=(STEM, CONV),
    passes=({"name": "group_rows", "modified": True, "seconds": 0.123, "refusals": (("up", "stays dense"),)},),
    refusals=(("up", "a transposed convolution stays dense: there is no row-group kernel for it."),),
    function_change="exact: the result equals the masked model",
    whole_model="sparse chosen: 8.1 ms against 33.0 ms dense",
    overhead={"kernels_us": 5200.0, "torch_us": 300.0, "outside_us": 120.4, "share": 0.0214},
    compile_seconds=41.23,
    versions={"torch": "2.15.0", "tvm": "0.27.0.post1"},
)


def test_totals_add_up() -> None:
    totals = REPORT.totals()
    assert totals.macs_dense == STEM.macs_dense + CONV.macs_dense
    assert totals.macs_run == STEM.macs_run + CONV.macs_run
    assert totals.dense_parameters == 64 * 147 + 64 * 576
    assert totals.parameters == STEM.parameters + CONV.parameters
    assert totals.size_bytes == STEM.size_bytes + CONV.size_bytes
    assert totals.dense_size_bytes == STEM.dense_size_bytes + CONV.dense_size_bytes


def test_limit_is_dense_over_kept_macs() -> None:
    kept = STEM.macs_kept + CONV.macs_kept
    assert REPORT.totals().limit == pytest.approx((STEM.macs_dense + CONV.macs_dense) / kept)


@pytest.mark.parametrize("layers", [(), (replace(CONV, macs_kept=0),)])
def test_nothing_kept_has_no_limit(layers: tuple[LayerReport, ...]) -> None:
    report = replace(REPORT, layers=layers)
    assert report.totals().limit is None
    assert "no limit" in str(report)


def test_table(golden: Callable[[str, str], None]) -> None:
    golden("report", str(REPORT))


def test_markdown(golden: Callable[[str, str], None]) -> None:
    golden("report_markdown", REPORT.to_markdown())


def test_first_line_says_whether_the_function_changed() -> None:
    assert str(REPORT).splitlines()[0] == REPORT.function_change
    assert REPORT.function_change in REPORT.to_markdown().splitlines()[0]


def test_lines_keep_their_width_and_lose_nothing() -> None:
    name = "features.denseblock3.denselayer16.conv1.with.a.very.long.path"
    heights = dict.fromkeys(range(1, 40), 1000)
    long = replace(CONV, name=name, heights=heights, reason="because " * 40)
    text = str(replace(REPORT, layers=(long,)))
    assert max(map(len, text.splitlines())) <= TABLE_WIDTH
    assert "…" not in text
    assert text.count("because") == 40
    assert text.count("1000x") == 39


def test_every_layer_has_its_reason() -> None:
    for text in (str(REPORT), REPORT.to_markdown()):
        for layer in REPORT.layers:
            assert layer.reason in text


def test_square_brackets_are_not_markup() -> None:
    assert "[bold]odd[/bold]" in str(replace(REPORT, whole_model="[bold]odd[/bold]"))


def test_dictionary_survives_json() -> None:
    plain = REPORT.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert isinstance(plain["layers"], list)
    assert plain["layers"][1]["heights"] == {"1": 3, "32": 2}
    assert isinstance(plain["totals"], dict)
    assert plain["totals"]["macs_dense"] == REPORT.totals().macs_dense


def test_dictionary_takes_data_classes_and_odd_numbers() -> None:
    @dataclass(frozen=True)
    class Refused:
        node: str

    step = {"name": "x", "modified": False, "seconds": float("nan"), "refusals": (Refused("up"),), "kind": complex(1)}
    assert replace(REPORT, passes=(step,)).to_dict()["passes"] == [
        {"name": "x", "modified": False, "seconds": None, "refusals": [{"node": "up"}], "kind": "(1+0j)"}
    ]


def test_markdown_cells_stay_in_their_table() -> None:
    text = replace(REPORT, layers=(replace(CONV, reason="a | b\nc"),)).to_markdown()
    (row,) = [line for line in text.splitlines() if line.startswith("| layer1")]
    assert row.endswith("a \\| b c |")


def test_a_report_without_overhead_says_nothing_of_it() -> None:
    assert "outside kernels" in str(REPORT)
    assert "outside kernels" not in str(replace(REPORT, overhead=None))


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (1000, "1k"), (1_820_000, "1.82M"), (4_089_184_256, "4.09G")]
)
def test_counts_have_three_digits(count: int, text: str) -> None:
    assert format_count(count) == text
