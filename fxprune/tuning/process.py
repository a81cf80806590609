"""The measuring process seen from the other side: a crash or a hang of a candidate costs that candidate only."""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Self

from fxprune.errors import CodegenError
from fxprune.tuning.runner import Answer
from fxprune.tuning.trial import Job

HANG_SECONDS = 30.0
"""A candidate that has no time by then is given up; the slowest layers take a tenth of a second a call."""

_TICK_SECONDS = 0.1
"""How often time is counted."""


class MeasuringProcess:
    """One process running `runner`, started when it is first needed and again after a candidate ended it."""

    def __init__(self) -> None:
        """Make it ready to start."""
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def measure(self, binary: bytes, threads: int, jobs: Sequence[tuple[str, Job]]) -> list[Answer]:
        """Return the seconds of every job, or why it has none.

        Args:
            binary: The shared library.
            threads: Threads of its parallel loops.
            jobs: Name of the function, and the job.

        Raises:
            CodegenError: No measuring process can be started.
        """
        answers: list[Answer] = []
        with self._lock:
            try:
                while len(answers) < len(jobs):
                    answers += self._measure_some(binary, threads, jobs[len(answers) :])
            except BaseException:
                self.close()  # its answers are still under way
                raise
        return answers

    def close(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _measure_some(self, binary: bytes, threads: int, jobs: Sequence[tuple[str, Job]]) -> list[Answer]:
        """Return the answers of the first jobs, up to and with the first that ends the process."""
        process = self._process = self._process or _start()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            pickle.dump((binary, threads, list(jobs)), process.stdin)
            process.stdin.flush()
        answers: list[Answer] = []
        for _ in jobs:
            answers.append(self._receive(process))
            if not self._runs():
                break
        return answers

    def _runs(self) -> bool:
        return self._process is not None

    def _receive(self, process: subprocess.Popen[bytes]) -> Answer:
        """Return the next answer; a process that died or hangs is closed."""
        assert process.stdout is not None
        with _Watch(process) as watch:
            try:
                seconds, note = pickle.load(process.stdout)
            except (EOFError, pickle.UnpicklingError):
                code = process.wait()
                self.close()
                note = f"no time after {HANG_SECONDS:.0f} s" if watch.hung else f"ended its process with code {code}"
                return None, note
        return seconds, note


class _Watch:
    """Kills a process that does not answer in time; time in which this process itself was stopped does not count.

    Attributes:
        hung: Whether it was killed.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.hung = False
        self._process, self._answered = process, threading.Event()
        self._thread = threading.Thread(target=self._wait, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._answered.set()
        self._thread.join()

    def _wait(self) -> None:
        for _ in range(round(HANG_SECONDS / _TICK_SECONDS)):
            if self._answered.wait(_TICK_SECONDS):
                return
        self.hung = True
        self._process.kill()


def _start() -> subprocess.Popen[bytes]:
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "fxprune.tuning.runner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C is for this process, which then ends the other
        )
    except OSError as error:
        raise CodegenError(
            f"Kernels are measured in a process of their own, and {sys.executable!r} cannot be started: {error}. "
            "Set sys.executable to a Python interpreter."
        ) from error


_SHARED = MeasuringProcess()
atexit.register(_SHARED.close)


def _forget() -> None:
    """Leave the process of the parent to it: called in the child of a fork."""
    global _SHARED
    _SHARED = MeasuringProcess()


os.register_at_fork(after_in_child=_forget)


def shared_process() -> MeasuringProcess:
    """Return the measuring process of this process."""
    return _SHARED
