"""Time each engine in a process of its own: the test that sharing a process costs the dense peers nothing."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.case import Case
from benchmarks.result import CaseResult, PeerResult, read_run

_ROOT = Path(__file__).resolve().parent.parent


def add_alone_times(result: CaseResult, threads: int, rounds: int, on_step: Callable[[str], None]) -> CaseResult:
    """Time every peer of the result that was timed once more, alone.

    Args:
        result: A finished case.
        threads: Threads of the engine.
        rounds: Rounds of each process.
        on_step: Told what comes next, once a peer.

    Raises:
        RuntimeError: A process failed.
    """
    peers = []
    for peer in result.peers:
        on_step(f"{peer.name} alone")
        peers.append(peer if peer.median_ms is None else _time_alone(result.case, peer, threads, rounds))
    return dataclasses.replace(result, peers=tuple(peers))


def _time_alone(case: Case, peer: PeerResult, threads: int, rounds: int) -> PeerResult:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "alone.json"
        command = [sys.executable, "-m", "benchmarks.run", "--peers", peer.name, "--output", str(output)]
        command += ["--threads", str(threads), "--rounds", str(rounds), *_format_case(case)]
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
        if not output.exists():
            raise RuntimeError(f"{peer.name} alone ended with code {done.returncode}: {done.stderr[-500:]}")
        alone = read_run(output).cases[0].find(peer.name)
    return dataclasses.replace(peer, alone_ms=alone.median_ms if alone else None)


def _format_case(case: Case) -> list[str]:
    options = {
        "--model": case.model,
        "--batch": case.batch,
        "--structure": case.structure,
        "--sparsity": case.sparsity,
        "--rows": case.rows or 32,
        "--seed": case.seed,
    }
    words = [str(word) for option in options.items() for word in option]
    switches = {"--shuffle-rows": case.shuffle_rows, "--cut": case.cut}
    return [*words, *(name for name, is_on in switches.items() if is_on)]
