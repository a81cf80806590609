"""Print the sizes of the code, one row a folder: to read, not to gate.

Columns: files; lines of a file and of a function (median / 90th percentile / largest); levels of nesting (90th
percentile / largest); share of functions that are fully annotated, of public things and of modules with a docstring;
bare or broad `except` per 1000 lines. The last line compares lines of test with lines of source.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
_BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
_BROAD = frozenset({"Exception", "BaseException"})
_HEADER = ("folder", "files", "file", "function", "nest", "ann %", "doc %", "mod %", "broad")
_FORMAT = "{:<24} {:>5} {:>15} {:>13} {:>7} {:>6} {:>6} {:>6} {:>6}"


@dataclass
class Counts:
    """What was counted in one folder; the lists hold one number an item."""

    file_lines: list[int] = field(default_factory=list)
    function_lines: list[int] = field(default_factory=list)
    nesting: list[int] = field(default_factory=list)
    annotated: list[bool] = field(default_factory=list)
    documented: list[bool] = field(default_factory=list)
    modules_documented: list[bool] = field(default_factory=list)
    broad: int = 0

    def add_file(self, text: str) -> None:
        """Count one source file."""
        tree = ast.parse(text)
        self.file_lines.append(text.count("\n"))
        self.modules_documented.append(ast.get_docstring(tree) is not None)
        self.documented += [ast.get_docstring(node) is not None for node in _find_public(tree)]
        for node in ast.walk(tree):
            if isinstance(node, Function):
                self.function_lines.append((node.end_lineno or node.lineno) - node.lineno + 1)
                self.nesting.append(_measure_depth(node))
                self.annotated.append(_is_annotated(node))
            self.broad += isinstance(node, ast.ExceptHandler) and _is_broad(node)

    def format_row(self, name: str) -> str:
        """Return the row of the table."""
        thousands = sum(self.file_lines) / 1000
        nest = _format_spread(self.nesting).partition(" / ")[2]
        shares = [_format_share(found) for found in (self.annotated, self.documented, self.modules_documented)]
        sizes = (_format_spread(self.file_lines), _format_spread(self.function_lines), nest)
        return _FORMAT.format(name, len(self.file_lines), *sizes, *shares, f"{self.broad / max(thousands, 1e-9):.1f}")


def _find_public(node: ast.AST) -> Iterator[Function | ast.ClassDef]:
    """Yield public functions and classes, methods of public classes included; nothing inside a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef) and not child.name.startswith("_"):
            yield child
            if isinstance(child, ast.ClassDef):
                yield from _find_public(child)


def _measure_depth(node: ast.AST, level: int = 0) -> int:
    deepest = level
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, Function | ast.ClassDef | ast.Lambda):
            deepest = max(deepest, _measure_depth(child, level + isinstance(child, _BLOCKS)))
    return deepest


def _is_annotated(function: Function) -> bool:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    arguments += [extra for extra in (function.args.vararg, function.args.kwarg) if extra is not None]
    asked = [argument for argument in arguments if argument.arg not in {"self", "cls"}]
    return function.returns is not None and all(argument.annotation is not None for argument in asked)


def _is_broad(handler: ast.ExceptHandler) -> bool:
    return handler.type is None or (isinstance(handler.type, ast.Name) and handler.type.id in _BROAD)


def _format_spread(values: list[int]) -> str:
    if not values:
        return "- / - / -"
    ordered = sorted(values)
    ninetieth = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
    return f"{statistics.median_low(ordered)} / {ninetieth} / {ordered[-1]}"


def _format_share(found: list[bool]) -> str:
    return f"{100 * sum(found) / len(found):.0f}" if found else "-"


def _find_folders(root: Path) -> Iterator[Path]:
    for name in ("fxprune", "tests", "benchmarks", "examples", "scripts"):
        if (root / name).is_dir():
            yield root / name
        if name == "fxprune":
            yield from sorted(path for path in (root / name).iterdir() if any(path.glob("*.py")))


def count_folder(folder: Path) -> Counts:
    """Count every Python file below a folder."""
    counts = Counts()
    for path in sorted(folder.rglob("*.py")):
        counts.add_file(path.read_text(encoding="utf-8"))
    return counts


def main() -> int:
    """Print the table."""
    root = Path(__file__).parents[1]
    print(_FORMAT.format(*_HEADER))
    rows = {str(folder.relative_to(root)): count_folder(folder) for folder in _find_folders(root)}
    for name, counts in rows.items():
        print(counts.format_row(name))
    source, tests = (sum(rows[name].file_lines) for name in ("fxprune", "tests"))
    print(f"{tests} lines of test for {source} lines of source: {tests / source:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
