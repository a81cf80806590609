"""One measured trial as one line of JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

VERSION = 1
"""Form of a record; a reader skips any other."""


@dataclass(frozen=True)
class Context:
    """What a measured time depends on besides the layer and the kernel's options.

    Attributes:
        target: The target with its threads, as text.
        kernels: Digest of the code that writes kernels.
        device: Name of the processor.
        versions: Versions of the libraries that build and run kernels, by name.
    """

    target: str
    kernels: str
    device: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Record:
    """One trial.

    Attributes:
        context: Where and with what it was measured.
        workload: The layer, as text.
        candidate: What ran it, as text: "dense", or a kernel's options.
        seconds: Time of one call; None: it cannot run.
        note: Why it cannot run.
        details: Further figures by name.
    """

    context: Context
    workload: str
    candidate: str
    seconds: float | None
    note: str = ""
    details: Mapping[str, float] = field(default_factory=dict)


def write_record(record: Record) -> bytes:
    """Return a record as one line."""
    return json.dumps({"v": VERSION, **asdict(record)}, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def read_record(line: bytes) -> Record | None:
    """Return the record of a line; None if it is none of this version."""
    try:
        written = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return _read(written) if isinstance(written, dict) and written.get("v") == VERSION else None


def _read(written: Mapping[str, Any]) -> Record | None:
    context, seconds = written.get("context"), written.get("seconds")
    if not isinstance(context, dict) or not (seconds is None or _is_time(seconds)):
        return None
    texts = [context.get(name) for name in ("target", "kernels", "device")]
    texts += [written.get(name) for name in ("workload", "candidate", "note")]
    versions, details = context.get("versions"), written.get("details")
    if not all(isinstance(text, str) for text in texts) or not isinstance(versions, dict):
        return None
    if not isinstance(details, dict) or not all(_is_time(value) for value in details.values()):
        return None
    target, kernels, device, workload, candidate, note = map(str, texts)
    return Record(Context(target, kernels, device, versions), workload, candidate, seconds, note, details)


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
