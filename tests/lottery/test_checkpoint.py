"""Checkpoints are whole or absent, and hold plain data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fxprune.errors import ArtifactError
from fxprune.lottery.checkpoint import lock_folder, read_file, write_file


class Custom:
    """Something that is no plain data."""


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_file(tmp_path / "a.pt", {"epoch": 3, "state": {"w": torch.arange(4)}, "losses": [0.5], "rate": (1, None)})
    found = read_file(tmp_path / "a.pt")
    assert found is not None
    assert (found["epoch"], found["losses"], found["rate"]) == (3, [0.5], (1, None))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_missing_file_is_none(tmp_path: Path) -> None:
    assert read_file(tmp_path / "a.pt") is None


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_refuses_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"a\.pt"):
        read_file(tmp_path / "a.pt")


def test_refuses_more_than_plain_data(tmp_path: Path) -> None:
    write_file(tmp_path / "a.pt", {"state": Custom()})
    with pytest.raises(ArtifactError, match="must be plain data"):
        read_file(tmp_path / "a.pt")


def test_the_lock_is_free_after_use(tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        pass
    with lock_folder(tmp_path), pytest.raises(ArtifactError, match="in use"), lock_folder(tmp_path):
        pass
