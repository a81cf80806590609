"""One file of members: whole or not there, at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fxprune.errors import ArtifactError
from fxprune.frozen.container import Container, write_container

ROOT = Path(__file__).parents[2]

_WRITE_AGAIN = """
import itertools, sys
from pathlib import Path
from fxprune.frozen.container import write_container
print("ready", flush=True)
for number in itertools.count():
    letter = bytes([97 + number % 26])
    write_container(Path(sys.argv[1]), {"letter": letter.decode()}, {"many": letter * 20_000_000})
"""


@pytest.mark.slow
def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "members"
    write_container(path, {"letter": "x"}, {"many": b"x" * 1000})
    letters, cut = set(), 0
    for number in range(8):
        command = [sys.executable, "-c", _WRITE_AGAIN, str(path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(0.02 + 0.11 * number)
            os.kill(process.pid, signal.SIGKILL)
        container = Container(path)
        letter = str(container.manifest["letter"])
        assert set(container.read("many")) == {ord(letter)}
        letters.add(letter)
        cut += any(item.suffix == ".partial" for item in tmp_path.iterdir())
    assert len(letters) > 1, "no round wrote anything"
    assert cut, "no round was killed while it wrote"


def test_members_come_back(tmp_path: Path) -> None:
    path = tmp_path / "members"
    write_container(path, {"answer": 42}, {"a/b": b"", "c": bytes(range(256))})
    container = Container(path)
    assert container.manifest["answer"] == 42
    assert (container.read("a/b"), container.read("c")) == (b"", bytes(range(256)))
    with pytest.raises(ArtifactError, match="its member 'd' cannot be read"):
        container.read("d")


def test_a_new_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "members"
    for text in (b"old", b"new"):
        write_container(path, {}, {"text": text})
    assert Container(path).read("text") == b"new"
    assert [item.name for item in tmp_path.iterdir()] == ["members"]
