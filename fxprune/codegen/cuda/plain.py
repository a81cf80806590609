"""Schedules of kernels for GPUs as plain values, for files and records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from fxprune.codegen.cuda.tensor_tile import AnySchedule, TensorSchedule
from fxprune.codegen.cuda.tile import ColumnsSchedule

_KINDS: tuple[type[AnySchedule], ...] = (ColumnsSchedule, TensorSchedule)
"""They are told apart by the names of their fields."""


def write_schedule(schedule: AnySchedule) -> dict[str, object]:
    """Return the options by name."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(schedule).items()}


def read_schedule(written: Mapping[str, Any]) -> AnySchedule:
    """Return the schedule whose options these are.

    Raises:
        ValueError: They are not those of any schedule of this version.
    """
    for kind in _KINDS:
        if set(written) == {field.name for field in fields(kind)}:
            values: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in written.items()}
            return kind(**values)
    raise ValueError(f"{dict(written)} is no schedule of this version")
