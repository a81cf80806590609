"""What the README says is true: its example runs, its file map and its table of variables are complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("measure", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_example_runs(capsys: pytest.CaptureFixture[str], measure: bool) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    head, end, tail = example.partition("example_inputs=x)")
    assert end
    text = example if measure else f"{head}example_inputs=x, options={{'measure': False}}){tail}"
    names: dict[str, object] = {}
    exec(compile(text, "README.md", "exec"), names)
    assert "layer4.1.conv2" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((ROOT / "fxprune").iterdir()), ids=lambda path: path.name)
def test_file_map_is_complete(path: Path) -> None:
    if path.name in {"__init__.py", "__pycache__", "py.typed"}:
        return
    name = f"`fxprune/{path.name}{'/' if path.is_dir() else ''}`"
    assert name in README, f"the file map of the README has no {name}"


def test_every_variable_is_in_the_table() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "fxprune").rglob("*.py"))
    read = set(re.findall(r'"(FXPRUNE_[A-Z_]+)"', sources))
    assert read == set(re.findall(r"^\| `(FXPRUNE_[A-Z_]+)`", README, re.MULTILINE))


def test_targets_it_names_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE)) <= targets
