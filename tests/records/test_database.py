"""Records outlive kills, other writers and damage."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fxprune.errors import UnsupportedError
from fxprune.records.database import Database
from fxprune.records.place import find_database
from fxprune.records.record import Context, Record, read_record, write_record

ROOT = Path(__file__).parents[2]
HERE = Context("a target", "kernels 1", "a device", {"torch": "2"})


def record(number: int, context: Context = HERE, seconds: float | None = 0.5) -> Record:
    return Record(context, "a layer", f"candidate {number}", seconds, "", {"predicted_us": 3.0})


def test_records_come_back_and_the_latest_counts(tmp_path: Path) -> None:
    database = Database(tmp_path / "new" / "records.jsonl")
    assert database.read(HERE) == {}
    assert not database.path.exists()
    database.add([record(1), record(2, seconds=None)])
    database.add([record(1, seconds=0.25)])
    found = database.read(HERE)
    assert found == {"a layer": {"candidate 1": record(1, seconds=0.25), "candidate 2": record(2, seconds=None)}}
    assert database.path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "other",
    [
        Context("another target", "kernels 1", "a device", {"torch": "2"}),
        Context("a target", "kernels 2", "a device", {"torch": "2"}),
        Context("a target", "kernels 1", "another device", {"torch": "2"}),
        Context("a target", "kernels 1", "a device", {"torch": "3"}),
    ],
)
def test_records_of_another_context_do_not_count(tmp_path: Path, other: Context) -> None:
    database = Database(tmp_path / "records.jsonl")
    database.add([record(1, other)])
    assert database.read(HERE) == {}
    assert list(database.read(other)) == ["a layer"]


def broken_lines() -> list[bytes]:
    whole = json.loads(write_record(record(7)))
    changes: list[dict[str, object]] = [
        {"v": 2},
        {"seconds": "fast"},
        {"seconds": -1.0},
        {"seconds": True},
        {"context": 3},
        {"context": {"target": "a target"}},
        {"candidate": None},
        {"details": {"predicted_us": "x"}},
        {"details": []},
    ]
    broken = [json.dumps({**whole, **change}).encode() for change in changes]
    return [*broken, b"", b"[]", b"null", b"\xff\xfe", b'{"v": 1', write_record(record(7))[:40], b"[" * 5000]


@pytest.mark.parametrize("line", broken_lines())
def test_a_broken_line_is_no_record(line: bytes) -> None:
    assert read_record(line) is None


def test_broken_lines_are_skipped_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = Database(tmp_path / "records.jsonl")
    database.add([record(1)])
    lines = [line for line in broken_lines() if line]
    with database.path.open("ab") as file:
        file.write(b"\n".join(lines))  # the last one without its end
    database.add([record(2)])
    assert set(database.read(HERE)["a layer"]) == {"candidate 1", "candidate 2"}
    assert [entry.message for entry in caplog.records] == [
        f"{database.path}: {len(lines)} unreadable records are skipped"
    ]


def test_what_is_no_database_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(bytes(range(256)))
    assert Database(path).read(HERE) == {}
    assert "unreadable records are skipped" in caplog.text
    assert path.read_bytes() == bytes(range(256))


def test_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_database(tmp_path / "mine.jsonl") == tmp_path / "mine.jsonl"
    monkeypatch.setenv("FXPRUNE_CACHE_DIR", str(tmp_path / "cache"))
    assert find_database(None) == tmp_path / "cache" / "records.jsonl"
    monkeypatch.delenv("FXPRUNE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert find_database(None) == tmp_path / "user" / "fxprune" / "records.jsonl"
    with pytest.raises(UnsupportedError, match="is a folder; pass a file in it"):
        find_database(tmp_path)
    with pytest.raises(UnsupportedError, match="database=3 is no path"):
        find_database(3)  # type: ignore[arg-type]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnsupportedError, match=r"cannot be written: .*Pass another path as database="):
        Database(tmp_path / "file" / "records.jsonl").add([record(1)])


_WRITE = """
import itertools, sys
from pathlib import Path
from fxprune.records.database import Database
from fxprune.records.record import Context, Record
context = Context("a target", "kernels 1", "a device", {"torch": "2"})
database = Database(Path(sys.argv[1]))
for number in itertools.count() if len(sys.argv) < 4 else range(int(sys.argv[3])):
    name = f"{sys.argv[2]} {number}"
    database.add([Record(context, "a layer", name, 0.5, "x" * 3000)])
    print(name, flush=True)
"""


def _write(path: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _WRITE, str(path), *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)


@pytest.mark.slow
def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    writers = [_write(path, f"writer-{index}", "200") for index in range(4)]
    reported = [line for writer in writers for line in writer.communicate()[0].decode().splitlines()]
    assert len(reported) == 800
    assert set(Database(path).read(HERE)["a layer"]) == set(reported)


@pytest.mark.slow
def test_twenty_kills_lose_no_reported_record(tmp_path: Path) -> None:
    path, draw = tmp_path / "records.jsonl", random.Random(1)
    reported: list[str] = []
    for number in range(20):
        with _write(path, f"run-{number}") as writer:
            assert writer.stdout is not None
            first = writer.stdout.readline()
            time.sleep(draw.uniform(0, 0.2))
            os.kill(writer.pid, signal.SIGKILL)
            whole = (first + writer.stdout.read()).split(b"\n")
            reported += [line.decode() for line in whole[:-1]]
    found = Database(path).read(HERE)["a layer"]
    assert set(reported) <= set(found)
    assert len(reported) > 100
    Database(path).add([record(1)])
    assert "candidate 1" in Database(path).read(HERE)["a layer"]
