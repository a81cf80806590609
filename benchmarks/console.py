"""What the benchmark programs show: a progress bar, one table a case, and a sentence below it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.result import BenchmarkRun, CaseResult

QUIET_CORES = 0.1
"""Cores in use by other processes above which a table warns; an idle system takes about 0.02."""


def open_progress(console: Console) -> Progress:
    """Make the progress bar of the benchmark programs."""
    return Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def make_on_step(progress: Progress, steps: int) -> Callable[[str], None]:
    """Make the function that moves the bar: it is told each step as it begins."""
    task = progress.add_task("starting", total=steps)
    begun = itertools.count()

    def on_step(description: str) -> None:
        progress.update(task, description=description, completed=next(begun))

    return on_step


def format_machine(run: BenchmarkRun) -> str:
    """Describe the machine and the versions in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    return f"{run.cpu} ({run.isa}), {run.threads} threads of {run.cores} cores, fp32. {versions}."


def print_case(console: Console, result: CaseResult) -> None:
    """Print the table of a case, what did not run and why, and the sentence that it comes down to."""
    console.print(format_table(result))
    for peer in result.peers:
        if peer.reason:
            console.print(f"{peer.title}: {peer.reason}", highlight=False, soft_wrap=True)
    console.print(format_summary(result), highlight=False, soft_wrap=True)
    if result.other_cores is not None and result.other_cores > QUIET_CORES:
        console.print(
            f"Not a quiet machine: other processes kept {result.other_cores:.2f} cores busy meanwhile. "
            "Do not rely on these times.",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
    console.print()


def format_table(result: CaseResult) -> Table:
    """Format one case: median, best, ratio to fxprune and error of every engine."""
    alone = any(peer.alone_ms is not None for peer in result.peers)
    table = Table(title=result.case.label, title_justify="left")
    for header in ("engine", "median ms", "best ms", *(["alone ms"] if alone else []), "fxprune", "error", "build s"):
        table.add_column(header, justify="left" if header == "engine" else "right", no_wrap=True)
    for peer in result.peers:
        table.add_row(
            peer.title,
            _format_ms(peer.median_ms),
            _format_ms(peer.best_ms),
            *([_format_ms(peer.alone_ms)] if alone else []),
            _format_ratio(result.ratio(peer) if peer.dense else None),
            "-" if peer.error is None else f"{peer.error:.1e}",
            f"{peer.build_seconds:.1f}" if peer.build_seconds else "-",
        )
    return table


def format_summary(result: CaseResult) -> str:
    """Format the sentence that a case comes down to."""
    limit = (
        f"Limit from MACs {result.limit:.2f}x ({result.macs_dense / 1e9:.2f} G dense, "
        f"{result.macs_kept / 1e9:.2f} G kept; density of the masked layers {result.density:.3f})."
    )
    fastest = result.fastest_dense()
    missing = [peer.title for peer in result.peers if peer.dense and peer.median_ms is None]
    if fastest is None:
        return f"No dense peer ran. {limit}"
    among = f" of those that ran ({', '.join(missing)} did not)" if missing else ""
    ratio, to_eager = result.ratio(fastest), result.ratio(result.find("eager"))
    if ratio is None:
        return f"Fastest dense fp32 peer{among}: {fastest.title}. {limit}"
    eager = "" if to_eager is None else f", {to_eager:.2f}x torch eager channels_last"
    return f"fxprune: {ratio:.2f}x {fastest.title}, the fastest dense fp32 peer{among}{eager}. {limit}"


def _format_ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _format_ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"
