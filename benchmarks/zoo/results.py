"""The file of cells: written as they come, read again to go on."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from importlib import metadata
from pathlib import Path

from benchmarks.zoo.cell import GATE, Key
from benchmarks.zoo.session import Row

_PACKAGES = ("fxprune", "torch", "torchvision", "numpy")


class Results:
    """All cells so far, in one JSON file and one Markdown table beside it."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self._path = path
        self.rows: list[Row] = []
        if resume and path.exists():
            self.rows = json.loads(path.read_text())["cells"]

    def has(self, key: Key) -> bool:
        """Return whether a cell is there and need not be run again: exact, or not applicable."""
        return any(_key_of(row) == key and row["state"] in ("exact", "not applicable") for row in self.rows)

    def add(self, row: Row) -> None:
        """Add or replace a cell, and write the files."""
        self.rows = [other for other in self.rows if _key_of(other) != _key_of(row)] + [row]
        self.write()

    def write(self) -> None:
        """Write both files; the JSON one is replaced at once, so that a kill leaves a whole one."""
        versions = {package: metadata.version(package) for package in _PACKAGES}
        head = {"gate": GATE, "machine": platform.machine(), "python": platform.python_version(), "packages": versions}
        fields = [f'"{name}": {json.dumps(value)}' for name, value in head.items()]
        cells = ",\n".join(f"  {json.dumps(row)}" for row in self.rows)
        text = ",\n ".join([*fields, f'"cells": [\n{cells}\n ]'])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".draft")
        draft.write_text(f"{{\n {text}\n}}\n")
        os.replace(draft, self._path)
        self._path.with_suffix(".md").write_text(format_table(self.rows))


def _key_of(row: Row) -> Key:
    shape = row["shape"]
    assert isinstance(shape, list)
    return Key(str(row["model"]), str(row["kind"]), tuple(shape), int(str(row["batch"])))


def count_exact(rows: list[Row]) -> tuple[int, int]:
    """Return how many cells are exact, and of how many that apply."""
    states = Counter(str(row["state"]) for row in rows)
    return states["exact"], sum(states.values()) - states["not applicable"]


def format_table(rows: list[Row]) -> str:
    """Return the cells as Markdown, one line each, and the count."""
    lines = [
        "# Channel elimination, every model and kind of mask",
        "",
        f"exact {'{} of {}'.format(*count_exact(rows))}; float64, gate {GATE:.0e} of the largest output.",
        "",
        "| model | masks | shape | batch | result | error | MACs before | after | kept | pass, s | refusals | reason |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_format_row(row) for row in sorted(rows, key=lambda row: str(_key_of(row))))]) + "\n"


def _format_row(row: Row) -> str:
    key, before, after = _key_of(row), int(str(row["macs_before"])), int(str(row["macs_after"]))
    error = "" if row["error"] is None else f"{float(str(row['error'])):.1e}"
    kept = f"{after / before:.1%}" if before else ""
    reason = str(row["reason"]).replace("|", "/").replace("\n", " ")[:160]
    cells = (
        key.model,
        key.kind,
        "x".join(map(str, key.shape)),
        key.batch,
        row["state"],
        error,
        f"{before / 1e6:.1f}M",
        f"{after / 1e6:.1f}M",
        kept,
        row["seconds"],
        row["refusals"],
        reason,
    )
    return "| " + " | ".join(map(str, cells)) + " |"
