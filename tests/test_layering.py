"""Imports point one way, there is no circle, and TVM stays inside `fxprune/codegen`."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fxprune"

HOUSE: dict[str, frozenset[str]] = {}
"""Room -> every room below it. A room is a module or folder directly in the package."""


def _build(room: str, *below: str) -> None:
    reach = set(below)
    for other in below:
        reach |= HOUSE[other]
    HOUSE[room] = frozenset(reach)


# From the ground up; the house of the architecture page. The wings (structure, codegen) and the report know nothing of
# each other, and only the lowering joins them.
_build("errors")
_build("annotation", "errors")
_build("records", "errors")
_build("arguments", "errors")
_build("host")
_build("fleet", "errors")
_build("masks", "errors")
_build("operators", "errors")
_build("lottery", "masks")
_build("report", "annotation")
_build("structure", "annotation")
_build("nodes", "annotation")
_build("layer", "nodes", "operators")
_build("views", "nodes")
_build("codegen", "layer")
_build("originals", "layer", "report")
_build("channels", "layer")
_build("printer", "layer")
_build("verify", "printer")
_build("debug", "printer")
_build("graph", "masks", "verify", "debug")
_build("microbatch", "graph")
_build("transform", "graph", "structure")
_build("passes", "transform", "channels", "views")
_build("checkpoint", "passes", "arguments")
_build("model_report", "passes", "report")
_build("lowering", "codegen", "debug", "records", "views")
_build("frozen", "graph", "originals")
_build("compiled", "lowering", "frozen")
_build("layer_reports", "lowering", "report")
_build("covering", "lowering", "structure")
_build("tuning", "covering", "records")
_build("backend", "compiled", "model_report", "layer_reports", "passes", "tuning", "microbatch", "arguments")
_build("shrunk", "compiled", "model_report")
_build("guarded", "lowering", "report")
_build("backend_cuda", "backend", "guarded")
_build("targets", "backend", "backend_cuda", "shrunk", "arguments")
_build("prepare", "passes", "originals")
_build("compiler", "targets", "prepare", "host")
_build("tuner", "compiler")
_build("integrate", "compiler")
_build("cli", "integrate", "tuner")
_build("__init__", "integrate", "tuner", "checkpoint")

SOURCES = sorted(PACKAGE.rglob("*.py"))


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def _imported(path: Path) -> set[str]:
    """Every module that the file imports, wherever in the file; `from a import b` counts as a.b if that is a module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if _is_module(inner) else node.module)
    return names


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return name.startswith("fxprune.") and (path.is_dir() or path.with_suffix(".py").exists())


def _passes() -> list[str]:
    return [_module(path) for path in SOURCES if path.parent.name == "passes"]


@pytest.mark.parametrize("path", SOURCES, ids=_module)
def test_imports_point_downwards(path: Path) -> None:
    room = _room(_module(path))
    assert room in HOUSE, f"{room} has no place in the house yet: give it one in HOUSE"
    used = {_room(name) for name in _imported(path) if name.split(".")[0] == "fxprune"} - {room}
    assert used <= HOUSE[room], f"{path.name} imports {sorted(used - HOUSE[room])}, which do not stand below {room}"


@pytest.mark.parametrize("path", [path for path in SOURCES if "codegen" not in path.parts], ids=_module)
def test_only_codegen_imports_tvm(path: Path) -> None:
    assert not {name for name in _imported(path) if name.split(".")[0] in {"tvm", "tvm_ffi"}}


def test_modules_inside_a_room_have_no_circle() -> None:
    names = {_module(path): path for path in SOURCES}
    edges = {name: {other for other in _imported(path) if other in names} for name, path in names.items()}
    done: set[str] = set()
    while ready := {name for name in edges if name not in done and edges[name] - {name} <= done}:
        done |= ready
    assert done == set(edges), f"these modules import each other in a circle: {sorted(set(edges) - done)}"


def test_package_and_passes_load_without_tvm() -> None:
    modules = ["fxprune", *_passes()]
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('tvm', 'tvm_ffi'))[:5])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
