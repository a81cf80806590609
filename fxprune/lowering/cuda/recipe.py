"""What a graph was lowered with, as JSON: with it and the library's bytes it is lowered again in the same way."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import fx

from fxprune.codegen.cuda.plain import read_schedule, write_schedule
from fxprune.codegen.cuda.target import CudaTarget, Precision, read_cuda_target
from fxprune.codegen.cuda.tensor_tile import AnySchedule
from fxprune.lowering.cuda.choice import CudaChoice


def write_recipe(
    schedules: Mapping[fx.Node, AnySchedule | None], target: CudaTarget, texts: Mapping[str, str], *, guarded: bool
) -> dict[str, object]:
    """Return target, schedules by node, and the digest of every function's text, from which its code was made.

    Args:
        schedules: Options of every kernel.
        target: The GPU.
        texts: TVMScript of each function by its global symbol.
        guarded: Whether the first run is to decide between the kernels and dense torch.
    """
    written = {node.name: write_schedule(schedule) for node, schedule in schedules.items() if schedule is not None}
    return {
        "target": {"kind": "cuda", "arch": target.arch},
        "precision": target.precision,
        "schedules": written,
        "functions": digest_texts(texts),
        "guarded": guarded,
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
        str(name): CudaChoice(read_schedule(written), "as it was saved")
        for name, written in recipe["schedules"].items()
    }
    return read_cuda_target(recipe["target"], _read_precision(recipe["precision"])), choices


def _read_precision(written: object) -> Precision:
    if written == "ieee" or written == "tf32":
        return written
    raise ValueError(f"{written!r} is no precision of this version")
