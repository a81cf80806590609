"""What was done to every layer, and why: plain data in; a table, a dictionary or Markdown out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from io import StringIO

from rich import box
from rich.console import Console
from rich.table import Table

TABLE_WIDTH = 120
"""Columns of the printed report."""

_COLUMNS = (
    "layer",
    "operator",
    "MACs",
    "run",
    "kept",
    "stored",
    "|w|",
    "groups",
    "kernel",
    "pred us",
    "us",
    "dense us",
)
_NUMBER_COLUMNS = frozenset(_COLUMNS) - {"layer", "operator", "groups", "kernel"}
_SHORT_COUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Verdict:
    """What the first run of a compiled model found on the device that it was compiled for.

    Attributes:
        sparse: Whether its kernels run; else dense torch does.
        text: What runs, and why, as `CompileReport.whole_model`.
    """

    sparse: bool
    text: str


@dataclass(frozen=True)
class LayerReport:
    """One layer, as it runs.

    Attributes:
        name: Module path, e.g. "layer1.0.conv2".
        operator: What it computes, e.g. "conv2d 3x3 s1 g1".
        weight_shape: Sizes of the weight in the user's model.
        output_shape: Sizes of the output in the user's model, batch included.
        macs_dense: Multiply-adds of the dense layer.
        macs_kept: Multiply-adds of the kept weights alone.
        macs_run: Multiply-adds that are executed.
        density: Kept weights over all weights, in [0, 1].
        stored_density: Stored weights over all weights, in [0, 1].
        heights: Number of row groups of each height; empty for a dense layer.
        kept_weight: Share of the unmasked weight's sum of absolute values that the mask keeps, in [0, 1].
        kernel: What runs, e.g. "dense: torch".
        predicted_us: Time by the cost model, in microseconds, if it was asked.
        measured_us: Measured time of what runs, if it was measured.
        dense_us: Measured time of the dense layer, if it was measured.
        reason: Why this kernel: a sentence with the fact in it.
        parameters: Kept weights.
        size_bytes: Bytes of the stored weights and their indices.
        dense_size_bytes: Bytes of the dense weight.
    """

    name: str
    operator: str
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    macs_dense: int
    macs_kept: int
    macs_run: int
    density: float
    stored_density: float
    heights: Mapping[int, int]
    kept_weight: float
    kernel: str
    predicted_us: float | None
    measured_us: float | None
    dense_us: float | None
    reason: str
    parameters: int
    size_bytes: int
    dense_size_bytes: int


@dataclass(frozen=True)
class Totals:
    """Sums over all layers.

    Attributes:
        macs_dense: Multiply-adds of the dense model.
        macs_kept: Multiply-adds of the kept weights alone.
        macs_run: Multiply-adds that are executed.
        parameters: Kept weights.
        dense_parameters: All weights.
        size_bytes: Bytes of the stored weights and their indices.
        dense_size_bytes: Bytes of the dense weights.
        limit: Amdahl limit of the speed-up: dense multiply-adds over kept ones; None if nothing is kept.
    """

    macs_dense: int
    macs_kept: int
    macs_run: int
    parameters: int
    dense_parameters: int
    size_bytes: int
    dense_size_bytes: int
    limit: float | None


@dataclass(frozen=True)
class MaskFacts:
    """What the report says of the masks.

    Attributes:
        kept_weight: Share of |w| that the mask keeps, by parameter name.
        families: The structure of each mask, by parameter name.
        function_change: Whether the result equals the masked model.
    """

    kept_weight: Mapping[str, float]
    families: Mapping[str, str]
    function_change: str

    def explain(self, name: str, reason: str) -> str:
        """Put the structure of a weight's mask, if it has one, before the reason for its kernel."""
        return f"{self.families[name]}; {reason}" if name in self.families else reason


@dataclass(frozen=True)
class CompileReport:
    """A compiled model, layer by layer.

    Attributes:
        target: The target, e.g. "cpu".
        threads: Threads that the kernels use.
        input_shapes: Sizes of the inputs it was compiled for.
        layers: All layers in the order in which they run.
        passes: One mapping a pass, the fields of its `PassRecord`.
        refusals: (node, reason) of every rewrite that could have applied and did not.
        function_change: Whether the result equals the masked model, and by how much it differs if not.
        whole_model: What was given back, sparse or dense, with both times.
        overhead: Time of one call in microseconds as `kernels_us`, `torch_us`, `outside_us`, and `share`, the part
            outside kernels in [0, 1]; None if not measured.
        compile_seconds: Wall time of the compilation, in seconds.
        versions: Version of every library that matters, by name.
        channels: One mapping a layer that lost channels, the fields of its `LayerCut`, in original numbering.
    """

    target: str
    threads: int
    input_shapes: tuple[tuple[int, ...], ...]
    layers: tuple[LayerReport, ...]
    passes: tuple[Mapping[str, object], ...]
    refusals: tuple[tuple[str, str], ...]
    function_change: str
    whole_model: str
    overhead: Mapping[str, float] | None
    compile_seconds: float
    versions: Mapping[str, str]
    channels: tuple[Mapping[str, object], ...] = ()

    def totals(self) -> Totals:
        """Add up all layers."""
        dense, kept = sum(layer.macs_dense for layer in self.layers), sum(layer.macs_kept for layer in self.layers)
        return Totals(
            macs_dense=dense,
            macs_kept=kept,
            macs_run=sum(layer.macs_run for layer in self.layers),
            parameters=sum(layer.parameters for layer in self.layers),
            dense_parameters=sum(math.prod(layer.weight_shape) for layer in self.layers),
            size_bytes=sum(layer.size_bytes for layer in self.layers),
            dense_size_bytes=sum(layer.dense_size_bytes for layer in self.layers),
            limit=dense / kept if kept else None,
        )

    def to_dict(self) -> dict[str, object]:
        """Return everything as dictionaries, lists, strings and numbers: equal to itself after JSON and back."""
        plain = {field.name: _make_plain(getattr(self, field.name)) for field in fields(self)}
        return {**plain, "totals": _make_plain(self.totals())}

    def to_markdown(self) -> str:
        """Return the report as Markdown, reasons in the table."""
        facts = "\n".join(f"- {_escape(line)}" for line in [*_format_facts(self), *_format_totals(self)])
        head = [*_COLUMNS, "why"]
        rows = [[*_format_layer(layer), layer.reason] for layer in self.layers]
        lines = [head, ["---"] * len(head), *rows]
        table = "\n".join(f"| {' | '.join(map(_escape, line))} |" for line in lines)
        notes = "\n".join(f"- {_escape(line)}" for line in _format_notes(self))
        return f"**{_escape(self.function_change)}**\n\n{facts}\n\n{table}\n\n{notes}\n"

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def __str__(self) -> str:
        layers = Table(*_COLUMNS, box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
        reasons = Table("layer", "why", box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for column in (*layers.columns, *reasons.columns):
            column.overflow = "fold"
            column.justify = "right" if column.header in _NUMBER_COLUMNS else "left"
        for layer in self.layers:
            layers.add_row(*_format_layer(layer))
            reasons.add_row(layer.name, layer.reason)
        sections: list[str | Table] = [
            *_format_facts(self),
            "",
            layers,
            "",
            *_format_totals(self),
            "",
            reasons,
            "",
            *_format_notes(self),
        ]
        return f"{self.function_change}\n{_render(sections)}"


def _format_layer(layer: LayerReport) -> tuple[str, ...]:
    """Return one cell for each of `_COLUMNS`."""
    return (
        layer.name,
        layer.operator,
        format_count(layer.macs_dense),
        format_count(layer.macs_run),
        f"{layer.density:.3f}",
        f"{layer.stored_density:.3f}",
        f"{layer.kept_weight:.3f}",
        " ".join(f"{count}x{height}" for height, count in sorted(layer.heights.items(), reverse=True)) or "-",
        layer.kernel,
        *("-" if time is None else f"{time:.0f}" for time in (layer.predicted_us, layer.measured_us, layer.dense_us)),
    )


def _format_facts(report: CompileReport) -> list[str]:
    """Return the lines above the table."""
    shapes = ", ".join("x".join(map(str, shape)) or "scalar" for shape in report.input_shapes)
    made = (
        f"target {report.target}, {report.threads} threads, input {shapes}; compiled in {report.compile_seconds:.1f} s"
    )
    return [made, report.whole_model]


def _format_totals(report: CompileReport) -> list[str]:
    """Return the lines of sums."""
    sums = report.totals()
    limit = "no limit: nothing is kept" if sums.limit is None else f"limit of the speed-up {sums.limit:.2f}x"
    macs = (sums.macs_dense, sums.macs_kept, sums.macs_run)
    lines = [
        "MACs: dense {}, kept {}, run {}; {}".format(*map(format_count, macs), limit),
        f"parameters: {format_count(sums.parameters)} of {format_count(sums.dense_parameters)}; "
        f"bytes: {format_count(sums.size_bytes)} of {format_count(sums.dense_size_bytes)}",
    ]
    if report.overhead is not None:
        times = ", ".join(f"{part} {report.overhead[f'{part}_us']:.0f} us" for part in ("kernels", "torch", "outside"))
        lines.append(f"one call: {times}; {100 * report.overhead['share']:.1f} % outside kernels")
    return lines


def _format_notes(report: CompileReport) -> list[str]:
    """Return the lines below the reasons: refusals, passes, versions."""
    refused = [f"refused {node}: {reason}" for node, reason in report.refusals]
    passes = [
        f"pass {step['name']}: {'modified' if step['modified'] else 'unchanged'}, {step['seconds']:.2f} s"
        for step in report.passes
    ]
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return [*refused, *passes, versions]


def _render(sections: Sequence[str | Table]) -> str:
    """Lay out lines and tables at a fixed width, without colour or markup."""
    text = StringIO()
    console = Console(file=text, width=TABLE_WIDTH, color_system=None, markup=False, highlight=False, emoji=False)
    for section in sections:
        console.print(section)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def format_count(count: int) -> str:
    """Return a count with three digits and a unit letter: 1820000 is "1.82M"."""
    for size, letter in _SHORT_COUNTS:
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)


def _escape(text: str) -> str:
    """Keep text inside one Markdown table cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def _make_plain(value: object) -> object:
    """Turn data classes, mappings and tuples into what JSON knows; not-a-number becomes None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _make_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _make_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_make_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
