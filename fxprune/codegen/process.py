"""Processes that hold TVM's compiler: started when something is to be built, ended when nothing was for a while.

They are shared by all compilations of this process. One that died or was interrupted is never used again.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from fxprune.errors import CodegenError

LINGER_SECONDS = 30.0
"""How long an idle process waits for the next request; compiling a large model pauses for as long between requests."""

_PROGRAM = Path(__file__).with_name("worker.py")
_LAST_WORDS = 2000
"""Characters of a dead process's stderr that an error message quotes."""


class BuildError(Exception):
    """TVM refuses a request, or its process ended; the message is TVM's or says how it ended."""


class BuildProcess:
    """One process running `worker`; it answers requests in turn."""

    def __init__(self) -> None:
        """Start it; it loads TVM while this process goes on.

        Raises:
            CodegenError: This Python cannot be started.
        """
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        paths = os.pathsep.join(path for path in sys.path if path)
        command = [sys.executable, "-P", str(_PROGRAM)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for this process, which then ends the other
            )
        except OSError as error:
            self._stderr.close()
            raise CodegenError(
                f"Kernels are built in a process of their own, and {sys.executable!r} cannot be started: {error}. "
                "Set sys.executable to a Python interpreter."
            ) from error

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._process.pid

    def send(self, service: str, **request: object) -> None:
        """Send a request; `receive` waits for its answer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `receive` says how it ended
            self._process.stdin.write(json.dumps({"service": service, **request}).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self) -> dict[str, object]:
        """Wait for the reply to the request sent last: "answer", or "error" if TVM refuses it or the process ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            code = self._process.wait()
            return {"error": f"the build process {self.pid} ended with code {code}{self._last_words()}"}
        reply: dict[str, object] = json.loads(line)
        return reply

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _last_words(self) -> str:
        self._stderr.seek(0)
        text = self._stderr.read().decode(errors="replace").strip()
        return f": {text[-_LAST_WORDS:]}" if text else ""


class _Idle:
    """The processes that nobody uses now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: list[BuildProcess] = []
        self._timer: threading.Timer | None = None

    def take(self, count: int) -> list[BuildProcess]:
        """Take processes out, new ones where there are not enough."""
        with self._lock:
            self._stop_timer()
            waiting, self._processes = self._processes[:count], self._processes[count:]
        taken = [process for process in waiting if process.is_alive()]
        for process in waiting:
            if process not in taken:
                process.close()
        while len(taken) < count:
            taken.append(BuildProcess())
        return taken

    def give(self, processes: Sequence[BuildProcess]) -> None:
        """Put processes back; they end if nobody takes them for a while."""
        with self._lock:
            self._stop_timer()
            self._processes += processes
            self._timer = threading.Timer(LINGER_SECONDS, self.close)
            self._timer.daemon = True
            self._timer.start()

    def count(self) -> int:
        """How many wait."""
        with self._lock:
            return len(self._processes)

    def close(self) -> None:
        """End them all."""
        with self._lock:
            self._stop_timer()
            processes, self._processes = self._processes, []
        for process in processes:
            process.close()

    def forget(self) -> None:
        """Leave the processes of the parent to it: called in the child of a fork."""
        self._lock, self._timer, self._processes = threading.Lock(), None, []

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None


_IDLE = _Idle()
atexit.register(_IDLE.close)
os.register_at_fork(after_in_child=_IDLE.forget)


def count_idle() -> int:
    """Return how many processes wait for a request."""
    return _IDLE.count()


def serve(service: str, requests: Sequence[Mapping[str, object]]) -> list[object]:
    """Have every request served by a process of its own, all at the same time; return the answers.

    Args:
        service: What `worker` is to do.
        requests: What it needs for that.

    Raises:
        BuildError: TVM refuses a request, or a process ended.
    """
    processes = _IDLE.take(len(requests))
    try:
        for process, request in zip(processes, requests, strict=True):
            process.send(service, **request)
        replies = [process.receive() for process in processes]
    except BaseException:
        for process in processes:  # its answer may still be under way, and would be taken for the next one
            process.close()
        raise
    _IDLE.give(processes)
    errors = [str(reply["error"]) for reply in replies if "error" in reply]
    if errors:
        raise BuildError(errors[0])
    return [reply["answer"] for reply in replies]


def end_idle_processes() -> None:
    """End the processes that wait for another compilation; the next one starts new ones."""
    _IDLE.close()
