"""Run the seeds side by side, one process a core, and watch them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from benchmarks.console import open_progress
from benchmarks.ticket.preset import Preset
from benchmarks.ticket.rows import Row, read_rows
from benchmarks.ticket.worker import find_rows_file, find_seed_folder

_POLL_SECONDS = 0.5


class SeedError(Exception):
    """A seed's process failed; the message has the end of what it said."""


def run_seeds(preset: Preset, seeds: Sequence[int], folder: Path, console: Console) -> list[Row]:
    """Train every seed; those that are done already are read back.

    Args:
        preset: The size of the experiment.
        seeds: The seeds.
        folder: Where everything lies.
        console: Shows the progress.

    Raises:
        SeedError: A process failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting = list(seeds)
    running: dict[int, subprocess.Popen[bytes]] = {}
    total = len(seeds) * count_trainings(preset)
    with open_progress(console) as progress, _stop_at_end(running):
        task = progress.add_task(f"training {len(seeds)} seeds", total=total)
        while waiting or running:
            while waiting and len(running) < len(os.sched_getaffinity(0)):
                seed = waiting.pop(0)
                running[seed] = _start(preset, seed, folder)
            time.sleep(_POLL_SECONDS)
            progress.update(task, completed=sum(_count_done(folder, seed) for seed in seeds))
            for seed in [seed for seed, process in running.items() if process.poll() is not None]:
                _check_end(running.pop(seed), seed, folder)
    return [row for seed in seeds for row in read_rows(find_rows_file(folder, seed))]


def count_trainings(preset: Preset) -> int:
    """Return the number of trainings of one seed."""
    return 1 + preset.rounds + len(preset.at) * len(preset.arms)


def _start(preset: Preset, seed: int, folder: Path) -> subprocess.Popen[bytes]:
    arguments = [preset.name, str(preset.recipe.epochs), str(seed), str(folder), "watched"]
    with _find_log(folder, seed).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.ticket.worker", *arguments],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _count_done(folder: Path, seed: int) -> int:
    place = find_seed_folder(folder, seed)
    return sum(1 for kind in ("dense", "round-*", "ticket-*") for _ in place.glob(f"{kind}.pt"))


def _check_end(process: subprocess.Popen[bytes], seed: int, folder: Path) -> None:
    process.communicate()  # it has ended: closes its input
    if process.returncode:
        end = "\n".join(_find_log(folder, seed).read_text(errors="replace").splitlines()[-15:])
        raise SeedError(f"Seed {seed} ended with status {process.returncode}:\n{end}")


def _find_log(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}.log"


@contextmanager
def _stop_at_end(running: dict[int, subprocess.Popen[bytes]]) -> Iterator[None]:
    """Stop what still runs when the experiment is interrupted; it goes on there the next time."""
    try:
        yield
    finally:
        for process in running.values():
            process.terminate()
            process.communicate()
