"""Measure memory: the peak while an engine is built and the peak while it runs, each engine in its own process.

A compiled model keeps the model it was made from, for inputs of other shapes, also when the user has let go of it; the
engine `fxprune-fixed` is the same with `other_shapes` off, which lets go of it. The processes in which fxprune builds
kernels count as long as the build lasts, under `build tree`; they end by themselves half a minute later, and the run is
that of the process alone. Pages of files (libraries) count as in VmRSS; the system may drop them at any time, so they
are also given by themselves.

Example:
    python -m benchmarks.memory --model resnet50 --sparsity 0.8
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.case import Case, build_problem
from benchmarks.console import make_on_step, open_progress
from benchmarks.masks import STRUCTURES
from benchmarks.models import MODELS
from benchmarks.peers import PEERS, CompiledForward, Forward, Peer, PeerError, Setting, build_peer

_ROOT = Path(__file__).resolve().parent.parent
_CALLS = 5
"""Calls whose peak is read; the second already repeats the first."""

_LOOK_SECONDS = 0.2
"""Time between two looks at the processes of a build."""


def _build_fixed(setting: Setting) -> Forward:
    import fxprune

    problem = setting.problem
    options = {"threads": setting.threads, "other_shapes": False}
    compiled = fxprune.compile(problem.model, problem.masks, example_inputs=(problem.x,), options=options)
    return CompiledForward(compiled, problem.x)


_FIXED = Peer("fxprune-fixed", "fxprune, fixed shapes", False, 1e-5, _build_fixed, "measured selection")
_ENGINES = (*PEERS, _FIXED)


@dataclass(frozen=True)
class MemoryResult:
    """Resident memory of one process, in MB (1e6 bytes); Python, torch and the engine's libraries are in it.

    Attributes:
        name: Name of the peer.
        build_seconds: Time to build, first call included.
        base_mb: At the start, only Python, torch and the benchmark loaded.
        before_mb: Before the build, the model and its masks loaded.
        build_peak_mb: Peak during the build.
        build_tree_mb: Peak during the build of this process and all that it started, looked at a few times a second.
        idle_mb: After it, with the user's model and masks let go of and free memory returned to the system.
        run_peak_mb: Peak over some calls.
        run_files_mb: Pages of files in that peak.
    """

    name: str
    build_seconds: float
    base_mb: float
    before_mb: float
    build_peak_mb: float
    build_tree_mb: float
    idle_mb: float
    run_peak_mb: float
    run_files_mb: float


def read_memory_mb(status: str, key: str) -> float:
    """Read a field of /proc/self/status, e.g. "VmHWM", in MB.

    Raises:
        LookupError: The system does not report the field.
    """
    for line in status.splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise LookupError(f"/proc/self/status has no field {key}; memory can be measured on Linux only")


def measure_here(name: str, case: Case, threads: int) -> MemoryResult:
    """Build and run one peer in this process, which should do nothing else.

    Raises:
        PeerError: The peer cannot be built.
    """
    peer = next(peer for peer in _ENGINES if peer.name == name)
    base = _read("VmRSS")
    problem = build_problem(case)
    _release()
    _reset_peak()
    before = _read("VmRSS")
    with tempfile.TemporaryDirectory() as folder, _watch_tree() as tree:
        built = build_peer(peer, Setting(problem, threads, Path(folder)))
    build_peak, build_seconds = _read("VmHWM"), built.build_seconds
    forward: Forward = built.forward
    del problem, built
    _release()
    _reset_peak()
    idle = _read("VmRSS")
    for _ in range(_CALLS):
        forward()
    run_peak, files = _read("VmHWM"), _read("RssFile")
    return MemoryResult(name, build_seconds, base, before, build_peak, tree[0], idle, run_peak, files)


def measure_in_subprocess(name: str, case: Case, threads: int) -> MemoryResult:
    """Measure one peer in a fresh process.

    Raises:
        PeerError: The process failed; the message is the end of what it wrote.
    """
    command = [sys.executable, "-m", "benchmarks.memory", "--child", name, "--threads", str(threads)]
    command += ["--model", case.model, "--batch", str(case.batch), "--sparsity", str(case.sparsity)]
    command += ["--structure", case.structure, "--rows", str(case.rows or 32)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PeerError((done.stderr.strip() or f"ended with code {done.returncode}").splitlines()[-1])
    return MemoryResult(**json.loads(done.stdout.splitlines()[-1]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the peers and print one row for each; return 1 if one of them failed."""
    options = _build_parser().parse_args(arguments)
    rows = options.rows if options.structure == "rowgroup" else 0
    case = Case(options.model, options.batch, options.structure, options.sparsity, rows)
    if options.child:
        return _run_child(options.child, case, options.threads)
    console = Console()
    title = f"{case.label}: resident MB"
    columns = ("engine", "build s", "base", "before", "build peak", "build tree", "idle", "run peak", "of it files")
    table = Table(*columns, title=title)
    failures: list[str] = []
    with open_progress(console) as progress:
        on_step = make_on_step(progress, len(options.peers))
        for name in options.peers:
            on_step(f"measuring {name}")
            try:
                result = measure_in_subprocess(name, case, options.threads)
            except PeerError as error:
                failures.append(f"{name}: {error}")
                continue
            values = dataclasses.astuple(result)[2:]
            table.add_row(name, f"{result.build_seconds:.1f}", *[f"{value:.0f}" for value in values])
    console.print(table, *failures, sep="\n")
    return int(bool(failures))


def _run_child(name: str, case: Case, threads: int) -> int:
    """Measure here and write the result as one line of JSON, or the reason why not to stderr."""
    try:
        result = measure_here(name, case, threads)
    except PeerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps(dataclasses.asdict(result)) + "\n")
    return 0


def _build_parser() -> argparse.ArgumentParser:
    names = [peer.name for peer in _ENGINES]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", choices=MODELS, default="resnet50")
    add("--batch", type=int, default=1)
    add("--sparsity", type=float, default=0.8)
    add("--structure", choices=STRUCTURES, default="rowgroup")
    add("--rows", type=int, default=32)
    add("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))))
    add("--peers", nargs="+", choices=names, default=["eager", "fxprune", _FIXED.name])
    add("--child", choices=names, help=argparse.SUPPRESS)
    return parser


@contextlib.contextmanager
def _watch_tree() -> Iterator[list[float]]:
    """Give a list whose only number is the largest sum of VmRSS over this process and its descendants, in MB."""
    largest, done = [0.0], threading.Event()

    def look() -> None:
        while not done.wait(_LOOK_SECONDS):
            largest[0] = max(largest[0], sum(map(_resident_mb, _tree(os.getpid()))))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield largest
    finally:
        done.set()
        thread.join()


def _tree(pid: int) -> Iterator[int]:
    """Yield a process and its descendants, as far as they are still there."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                yield from _tree(int(child))


def _resident_mb(pid: int) -> float:
    """Return the resident memory of a process; 0 if it has ended."""
    try:
        return read_memory_mb(Path(f"/proc/{pid}/status").read_text(), "VmRSS")
    except (OSError, LookupError):
        return 0.0


def _read(key: str) -> float:
    return read_memory_mb(Path("/proc/self/status").read_text(), key)


def _reset_peak() -> None:
    """Set VmHWM to the present VmRSS; proc(5), clear_refs."""
    Path("/proc/self/clear_refs").write_text("5")


def _release() -> None:
    """Collect garbage and hand free heap pages back, so that leftovers of the build do not count as run time memory."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


if __name__ == "__main__":
    sys.exit(main())
