"""The version of the kernels changes with their code."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fxprune.codegen import version


def test_a_changed_kernel_is_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "codegen"
    shutil.copytree(Path(version.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(version, "_FOLDER", folder)
    found = []
    for name in (None, "cpu/rows.py", "cpu/launch.cc"):
        if name:
            (folder / name).write_text((folder / name).read_text() + "\n")
        version.kernel_version.cache_clear()
        found.append(version.kernel_version())
    version.kernel_version.cache_clear()
    assert len(set(found)) == 3
