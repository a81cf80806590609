"""A report from its dictionary, and what it needs of the masks and of the model's layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, cast

from fxprune.originals import OriginalLayer
from fxprune.report import CompileReport, LayerReport, MaskFacts


def write_report(report: CompileReport) -> dict[str, object]:
    """Return a report as JSON; `read_report` makes it again."""
    return report.to_dict()


def read_report(written: Mapping[str, Any]) -> CompileReport:
    """Return the report that `write_report` wrote."""
    values = {field.name: _freeze(written[field.name]) for field in fields(CompileReport)}
    values["layers"] = tuple(_read_layer(layer) for layer in written["layers"])
    return CompileReport(**values)


def _read_layer(written: Mapping[str, Any]) -> LayerReport:
    values = {field.name: _freeze(written[field.name]) for field in fields(LayerReport)}
    values["heights"] = {int(height): int(count) for height, count in written["heights"].items()}
    return LayerReport(**values)


def _freeze(value: object) -> Any:
    """Return lists as tuples, at any depth."""
    if isinstance(value, Mapping):
        return {key: _freeze(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_freeze(item) for item in value)
    return value


def write_facts(facts: MaskFacts) -> dict[str, object]:
    """Return the facts of the masks as JSON."""
    return asdict(facts)


def read_facts(written: Mapping[str, object]) -> MaskFacts:
    """Return the facts that `write_facts` wrote."""
    kept = {name: float(share) for name, share in cast("Mapping[str, float]", written["kept_weight"]).items()}
    return MaskFacts(kept, dict(cast("Mapping[str, str]", written["families"])), str(written["function_change"]))


def write_originals(layers: Sequence[OriginalLayer]) -> list[object]:
    """Return the layers of the user's model as JSON."""
    return [asdict(layer) for layer in layers]


def read_originals(written: Sequence[Mapping[str, Any]]) -> tuple[OriginalLayer, ...]:
    """Return the layers that `write_originals` wrote."""
    return tuple(
        OriginalLayer(**{field.name: _freeze(layer[field.name]) for field in fields(OriginalLayer)})
        for layer in written
    )
