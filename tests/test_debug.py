"""FXPRUNE_DUMP and FXPRUNE_LOG: off by default, checked when set."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from fxprune.debug import configure_logging, dump_text, find_dump_folder, find_log_level
from fxprune.errors import UnsupportedError


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start without the variables; leave the package logger as it was."""
    monkeypatch.delenv("FXPRUNE_DUMP", raising=False)
    monkeypatch.delenv("FXPRUNE_LOG", raising=False)
    package = logging.getLogger("fxprune")
    handlers, level = list(package.handlers), package.level
    yield
    package.handlers[:] = handlers
    package.setLevel(level)


def test_nothing_is_dumped_without_the_variable() -> None:
    assert find_dump_folder() is None
    dump_text("000_input.txt", "text")


def test_dump_makes_the_folder_and_replaces_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a" / "b"
    monkeypatch.setenv("FXPRUNE_DUMP", str(folder))
    dump_text("x.txt", "one")
    dump_text("x.txt", "two")
    assert (folder / "x.txt").read_text() == "two\n"


def test_dump_into_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FXPRUNE_DUMP", str(tmp_path / "file"))
    with pytest.raises(UnsupportedError, match=r"FXPRUNE_DUMP=.*is a file; it needs the path of a folder"):
        dump_text("x.txt", "text")


def test_dump_below_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FXPRUNE_DUMP", str(tmp_path / "file" / "below"))
    with pytest.raises(UnsupportedError, match=r"x.txt cannot be written"):
        dump_text("x.txt", "text")


def test_logging_is_left_alone_without_the_variable() -> None:
    before = list(logging.getLogger("fxprune").handlers)
    configure_logging()
    assert logging.getLogger("fxprune").handlers == before
    assert find_log_level() is None


def test_log_lines_go_to_stderr_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FXPRUNE_LOG", "info")
    configure_logging()
    configure_logging()
    logging.getLogger("fxprune.passes").info("hello")
    logging.getLogger("fxprune.passes").debug("silent")
    assert capsys.readouterr().err == "fxprune.passes: hello\n"


def test_unknown_level_is_refused_with_the_valid_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXPRUNE_LOG", "loud")
    with pytest.raises(UnsupportedError, match="'loud' is no level; it needs one of debug, info, warning, error"):
        configure_logging()
