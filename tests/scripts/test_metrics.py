"""The size metrics count what their header says."""

from __future__ import annotations

from scripts.metrics import Counts

SOURCE = '''"""A module."""


class Public:
    """A class."""

    def method(self, x: int) -> int:
        if x:
            for _ in range(x):
                x += 1
        return x


def undocumented(x):
    try:
        return x
    except Exception:
        return None


def _private() -> None:
    def inner() -> None:
        while True:
            pass
'''


def test_counts_of_a_small_file() -> None:
    counts = Counts()
    counts.add_file(SOURCE)
    assert counts.file_lines == [24]
    assert sorted(counts.function_lines) == [3, 4, 5, 5]
    assert sorted(counts.nesting) == [0, 1, 1, 2]
    assert sorted(counts.annotated) == [False, True, True, True]
    assert counts.documented == [True, False, False]
    assert counts.modules_documented == [True]
    assert counts.broad == 1


def test_the_row_has_a_value_in_every_column() -> None:
    counts = Counts()
    counts.add_file(SOURCE)
    row = " ".join(counts.format_row("folder").split())
    assert row == "folder 1 24 / 24 / 24 4 / 5 / 5 2 / 2 75 33 100 41.7"
    assert "-" in Counts().format_row("empty")
