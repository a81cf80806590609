"""Measure memory: the peak while an engine is built and the peak while it runs, each engine in its own process.

Example:
    python -m benchmarks.memory --model resnet50 --sparsity 0.8
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.case import Case, add_case_options, build_problem, read_case
from benchmarks.console import make_on_step, open_progress
from benchmarks.peers import PEERS, Forward, PeerError, Setting, build_peer

_ROOT = Path(__file__).resolve().parent.parent
_CALLS = 5
"""Calls whose peak is read; the second already repeats the first."""


@dataclass(frozen=True)
class MemoryResult:
    """Resident memory of one process, in MB (1e6 bytes); Python, torch and the engine's libraries are in it.

    Attributes:
        name: Name of the peer.
        build_seconds: Time to build, first call included.
        base_mb: At the start, only Python, torch and the benchmark loaded.
        before_mb: Before the build, the model and its masks loaded.
        build_peak_mb: Peak during the build.
        idle_mb: After it, with the user's model and masks let go of and free memory returned to the system.
        run_peak_mb: Peak over some calls.
    """

    name: str
    build_seconds: float
    base_mb: float
    before_mb: float
    build_peak_mb: float
    idle_mb: float
    run_peak_mb: float


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
    peer = next(peer for peer in PEERS if peer.name == name)
    base = _read("VmRSS")
    problem = build_problem(case)
    _release()
    _reset_peak()
    before = _read("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        built = build_peer(peer, Setting(problem, threads, Path(folder)))
    build_peak, build_seconds = _read("VmHWM"), built.build_seconds
    forward: Forward = built.forward
    del problem, built
    _release()
    _reset_peak()
    idle = _read("VmRSS")
    for _ in range(_CALLS):
        forward()
    return MemoryResult(name, build_seconds, base, before, build_peak, idle, _read("VmHWM"))


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
    case = read_case(options)
    if options.child:
        return _run_child(options.child, case, options.threads)
    console = Console()
    title = f"{case.label}: resident MB"
    table = Table("engine", "build s", "base", "before", "build peak", "idle", "run peak", title=title)
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
    names = [peer.name for peer in PEERS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add_case_options(parser)
    add("--peers", nargs="+", choices=names, default=["eager", "fxprune"])
    add("--child", choices=names, help=argparse.SUPPRESS)
    return parser


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
