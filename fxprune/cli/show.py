"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table
from torch import Tensor


def print_json(value: object) -> None:
    """Print a value as one JSON document."""
    Console(soft_wrap=True).out(json.dumps(value, indent=1), highlight=False)


def print_text(text: str) -> None:
    """Print lines as they are."""
    Console(soft_wrap=True).out(text, highlight=False)


def print_error(text: str) -> None:
    """Print what went wrong on standard error."""
    Console(stderr=True, soft_wrap=True).out(f"error: {text}", highlight=False)


def describe_masks(masks: dict[str, Tensor]) -> list[dict[str, object]]:
    """Return name, shape, cells and kept cells of every mask."""
    return [
        {"name": name, "shape": list(mask.shape), "cells": mask.numel(), "kept": int(mask.count_nonzero())}
        for name, mask in masks.items()
    ]


def print_masks(masks: dict[str, Tensor]) -> None:
    """Print a table of masks with their sum."""
    table = Table("weight", "shape", "cells", "kept", "density")
    cells = kept = 0
    for name, mask in masks.items():
        own, left = mask.numel(), int(mask.count_nonzero())
        cells, kept = cells + own, kept + left
        table.add_row(name, "x".join(map(str, mask.shape)), str(own), str(left), f"{left / max(1, own):.4f}")
    table.add_section()
    table.add_row("all", "", str(cells), str(kept), f"{kept / max(1, cells):.4f}")
    Console().print(table)
