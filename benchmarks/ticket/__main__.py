"""Command line of the ticket experiment: train, compile, time; one table and one plot.

Example:
    python -m benchmarks.ticket --preset smoke
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.console import make_on_step, open_progress
from benchmarks.result import start_run
from benchmarks.ticket.latency import SCHEDULE, Latency, list_timed, time_tickets
from benchmarks.ticket.outcome import Outcome
from benchmarks.ticket.picture import draw_outcome
from benchmarks.ticket.preset import PRESETS, Preset
from benchmarks.ticket.seeds import SeedError, run_seeds
from benchmarks.ticket.table import print_outcome
from fxprune.errors import FxpruneError

ROOT = Path(__file__).resolve().parents[2]

_TABLE_WIDTH = 132


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment; return 0, or 1 if a part of it failed."""
    options = build_parser().parse_args(arguments)
    console = make_console()
    start = time.monotonic()
    preset = PRESETS[options.preset].with_epochs(options.epochs)
    seeds = range(options.seeds or preset.seeds)
    folder = options.folder or ROOT / "build" / "ticket" / f"{preset.name}-{preset.recipe.epochs}"
    run = start_run(options.threads, SCHEDULE)
    try:
        rows = run_seeds(preset, seeds, folder, console)
        latencies, other_cores = _time(preset, seeds[0], folder, options, console)
    except (SeedError, FxpruneError, ValueError) as error:
        console.print(f"The experiment stopped: {error}", style="red", markup=False)
        return 1
    minutes = (time.monotonic() - start) / 60
    outcome = Outcome(run, preset, minutes, tuple(rows), tuple(latencies), other_cores)
    outcome.write(options.output)
    if latencies:
        draw_outcome(outcome, options.output.with_suffix(".png"))
    print_outcome(console, outcome)
    console.print(f"written: {options.output}", soft_wrap=True)
    return 0


def make_console() -> Console:
    """Make the console; a file or pipe gets lines as long as the table needs."""
    console = Console()
    return console if console.is_terminal else Console(width=_TABLE_WIDTH)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    threads = min(2, len(os.sched_getaffinity(0)))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ticket", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="default", help=f"size: {', '.join(PRESETS)} (default)")
    add("--seeds", type=int, metavar="N", help="number of seeds (that of the preset)")
    add("--epochs", type=int, metavar="N", help="epochs of a training (those of the preset)")
    add("--batch", nargs="*", type=int, default=[1, 64], metavar="N", help="batch sizes that are timed (1 64)")
    add("--threads", type=int, default=threads, help=f"threads of every timed engine ({threads})")
    add("--folder", type=Path, help="where checkpoints lie; an interrupted run goes on there (build/ticket/...)")
    add("--output", type=Path, default=ROOT / "benchmarks" / "results" / "ticket.json", metavar="FILE",
        help="the JSON file; the plot goes beside it (benchmarks/results/ticket.json)")  # fmt: skip
    return parser


def _time(
    preset: Preset, seed: int, folder: Path, options: argparse.Namespace, console: Console
) -> tuple[list[Latency], float | None]:
    with open_progress(console) as progress:
        steps = len(options.batch) * (1 + len(list_timed(preset)))
        on_step = make_on_step(progress, steps)
        return time_tickets(preset, seed, folder, options.batch, options.threads, on_step)


if __name__ == "__main__":
    sys.exit(main())
