"""What a graph was lowered with, as JSON: with it and the library's bytes it is lowered again in the same way."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from torch import fx

from fxprune.codegen.cuda.target import CudaTarget, read_cuda_target
from fxprune.codegen.cuda.tile import ColumnsSchedule
from fxprune.lowering.cuda.choice import CudaChoice


def write_recipe(
    schedules: Mapping[fx.Node, ColumnsSchedule | None], target: CudaTarget, texts: Mapping[str, str]
) -> dict[str, object]:
    """Return target, schedules by node, and the digest of every function's text, from which its code was made.

    Args:
        schedules: Options of every kernel.
        target: The GPU.
        texts: TVMScript of each function by its global symbol.
    """
    written = {node.name: {**asdict(s), "thread": list(s.thread)} for node, s in schedules.items() if s is not None}
    return {
        "target": {"kind": "cuda", "arch": target.arch},
        "schedules": written,
        "functions": digest_texts(texts),
    }


def digest_texts(texts: Mapping[str, str]) -> dict[str, str]:
    """Return the SHA-256 of each text."""
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def read_recipe(recipe: Mapping[str, Any]) -> tuple[CudaTarget, dict[str, CudaChoice]]:
    """Return the target and what runs each layer that a kernel runs, by the name of its node.

    Raises:
        ValueError: A schedule is not one of this version.
    """
    choices = {
        str(name): CudaChoice(_read_schedule(written), "as it was saved")
        for name, written in recipe["schedules"].items()
    }
    return read_cuda_target(recipe["target"]), choices


def _read_schedule(written: Mapping[str, Any]) -> ColumnsSchedule:
    if set(written) != {field.name for field in fields(ColumnsSchedule)}:
        raise ValueError(f"{dict(written)} is no schedule of this version")
    rows, pixels = (int(size) for size in written["thread"])
    return ColumnsSchedule(**{**written, "thread": (rows, pixels)})
