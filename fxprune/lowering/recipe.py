"""What a graph was lowered with, as JSON: enough to lower it again in the same way."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import fx

from fxprune.codegen.plain import write_schedule, write_target
from fxprune.codegen.target import CpuTarget
from fxprune.lowering.choice import Choice


def write_recipe(
    choices: Mapping[fx.Node, Choice], target: CpuTarget, texts: Mapping[str, str], images: int | None
) -> dict[str, object]:
    """Return target, images of a micro-batch, schedules by node, and the digest of every function's text.

    Args:
        choices: What runs every layer.
        target: The CPU.
        texts: TVMScript of each function by its global symbol.
        images: Images of a micro-batch; None = the whole batch at once.
    """
    schedules = {node.name: choice.schedule for node, choice in choices.items() if choice.schedule is not None}
    heights = {node.name: choice.group_height for node, choice in choices.items() if choice.group_height is not None}
    return {
        "target": write_target(target),
        "images": images,
        "group_heights": heights,
        "schedules": {name: write_schedule(schedule) for name, schedule in schedules.items()},
        "functions": digest_texts(texts),
    }


def digest_texts(texts: Mapping[str, str]) -> dict[str, str]:
    """Return the SHA-256 of each text."""
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
