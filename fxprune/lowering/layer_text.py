"""What layers of one kind have in common, as text: the key under which their times are recorded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict

from fxprune.lowering.choice import Case

DENSE = "dense"
"""The candidate of torch's own layer, beside the kernels' options."""


def describe_case(case: Case) -> dict[str, object]:
    """Return what the time of a layer depends on, whatever runs it; stored cells count in steps of about 3 %."""
    layer, pattern = case.layer, case.pattern
    return {
        "shape": asdict(case.shape),
        "kind": layer.kind,
        "activation": [layer.activation, *layer.activation_args],
        "residual": layer.residual is not None,
        "stored": f"{round(pattern.density * 32)}/32"
        if pattern.density > 0.3
        else f"{round(pattern.density * 128)}/128",
        "tallest": max(pattern.heights(), default=0),
    }


def digest_of(value: object) -> str:
    """Return a name, of one length, of values that JSON can write; the same for the same values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def plain_text(value: Mapping[str, object]) -> str:
    """Return values as one line of JSON, the same for the same values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
