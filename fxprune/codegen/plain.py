"""Targets and schedules as JSON and back: what artifacts and tuning records hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from fxprune.codegen.cpu.depthwise import DepthwiseSchedule
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.cpu.winograd_plan import WinogradSchedule
from fxprune.codegen.schedules import Schedule
from fxprune.codegen.target import CpuTarget

_FAMILIES: dict[str, type[Schedule]] = {
    "rows": RowsSchedule,
    "pixels": PixelsSchedule,
    "depthwise": DepthwiseSchedule,
    "winograd": WinogradSchedule,
}


def write_schedule(schedule: Schedule) -> dict[str, object]:
    """Return a schedule as JSON."""
    family = next(name for name, kind in _FAMILIES.items() if isinstance(schedule, kind))
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(schedule).items()}
    return {"family": family, **plain}


def read_schedule(written: Mapping[str, Any]) -> Schedule:
    """Return a schedule from its JSON.

    Raises:
        ValueError: It is no schedule of this version.
    """
    kind = _FAMILIES.get(str(written.get("family")))
    names = {field.name for field in fields(kind)} if kind else set()
    if kind is None or names | {"family"} != set(written):
        raise ValueError(f"{dict(written)} is no schedule of this version")
    values: dict[str, Any] = {name: written[name] for name in names}
    if "tile" in values:
        height, width = (int(size) for size in values["tile"])
        values["tile"] = (height, width)
    return kind(**values)


def write_target(target: CpuTarget) -> dict[str, object]:
    """Return a target as JSON."""
    return {**asdict(target), "features": list(target.features)}


def read_target(written: Mapping[str, Any]) -> CpuTarget:
    """Return a target from its JSON."""
    values = {field.name: written[field.name] for field in fields(CpuTarget)}
    return CpuTarget(**{**values, "features": tuple(map(str, values["features"]))})
