"""Run the cells of one model in a process of their own, and start another one after a crash or a time-out."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

from benchmarks.zoo.cell import Key, Outcome, as_json

Row = dict[str, object]


class Worker:
    """One process with the cells of one model; a cell that takes too long ends it."""

    def __init__(self, threads: int) -> None:
        command = [sys.executable, "-m", "benchmarks.zoo.worker", str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def run(self, key: Key, seconds: float) -> Row | None:
        """Run one cell; None if the process died or took longer than that, and is gone now."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(dataclasses.asdict(key)) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=seconds)
        except (queue.Empty, BrokenPipeError):
            line = ""
        if not line:
            self.stop()
            return None
        row: Row = json.loads(line)
        return row

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def run_model(keys: Sequence[Key], *, threads: int, seconds: float) -> Iterator[Row]:
    """Run cells one after the other.

    Args:
        keys: The cells of one model.
        threads: Threads of torch.
        seconds: Time limit of one cell.

    Yields:
        One row a cell, as `as_json` gives it.
    """
    worker = Worker(threads)
    for key in keys:
        row = worker.run(key, seconds)
        if row is None:
            yield as_json(key, Outcome("failed", reason=f"the process died, or took more than {seconds:.0f} s"))
            worker = Worker(threads)
        else:
            yield row
    worker.stop()
