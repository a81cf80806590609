"""The program of a measuring process: it runs kernels that nobody has run before, so it may crash or hang.

A request on standard input is a pickled (shared library, threads, jobs); the answers on standard output are one
pickled (seconds, note) a job, each sent as soon as it is known. Both ends of the pipes are fxprune's own processes.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Sequence

import torch

from fxprune.codegen.build import Library
from fxprune.errors import FxpruneError
from fxprune.lowering.measure import Rig, time_calls
from fxprune.tuning.trial import Job

Answer = tuple[float | None, str]


def time_job(library: Library, name: str, job: Job) -> float:
    """Return the seconds of one call."""
    return time_calls([Rig([job.work]).bind(library, name, job.kernel())])[0]


def answer_job(library: Library, name: str, job: Job) -> Answer:
    """Return the answer for one job; whatever Python raises becomes its note."""
    try:
        return time_job(library, name, job), ""
    except (FxpruneError, RuntimeError, ValueError, AttributeError, MemoryError) as error:
        return None, f"{type(error).__name__}: {error}"


def main() -> None:
    """Serve requests until standard input ends, which it does when the process at its other end does."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a kernel prints is no answer
    requests = open(os.dup(sys.stdin.fileno()), "rb")  # noqa: SIM115  # open as long as the process lives
    while requests.peek(1):
        binary, threads, jobs = pickle.load(requests)
        torch.set_num_threads(threads)
        library = Library.from_binary(binary, threads)
        _answer_all(answers.fileno(), library, jobs)


def _answer_all(handle: int, library: Library, jobs: Sequence[tuple[str, Job]]) -> None:
    for name, job in jobs:
        data = pickle.dumps(answer_job(library, name, job))
        while data:
            data = data[os.write(handle, data) :]


if __name__ == "__main__":
    main()
