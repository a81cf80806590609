"""The default regroup against the paper's rule: the same tickets, as many stored weights, trained again in pairs.

Example:
    python -m benchmarks.ticket.rules
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.console import format_machine
from benchmarks.result import BenchmarkRun, start_run, write_json
from benchmarks.ticket.arms import AS_PAPER, PAPER
from benchmarks.ticket.latency import SCHEDULE
from benchmarks.ticket.preset import PRESETS, RULES, Preset
from benchmarks.ticket.rows import Row
from benchmarks.ticket.seeds import SeedError, run_seeds
from fxprune.errors import FxpruneError

ROOT = Path(__file__).resolve().parents[2]

SCHEMA_VERSION = 1

_WIDTH = 140


@dataclass(frozen=True)
class Pair:
    """One ticket, regrouped by both rules and trained again from the same weights on the same batches.

    Attributes:
        paper: The paper's rule.
        ours: The default rule, each layer with as many stored weights.
    """

    paper: Row
    ours: Row

    @property
    def difference(self) -> float:
        """Accuracy of the default rule over that of the paper's."""
        return self.ours.accuracy - self.paper.accuracy


@dataclass(frozen=True)
class Line:
    """Both rules over some pairs; every figure is a mean over them.

    Attributes:
        number: The round; None: all rounds.
        imp_density: Density of the round's own masks.
        paper_density: Stored density, prunable layers, paper's rule.
        density: The same of the default rule.
        paper_held: Share of the round's |w| that the paper's rule keeps.
        held: The same of the default rule.
        paper_grouped_held: `paper_held` of the layers that the paper's rule groups, alone.
        grouped_held: The same of the default rule.
        paper_accuracy: Accuracy, paper's rule.
        accuracy: The same of the default rule.
        difference: Mean paired difference of the accuracies.
        error: Its standard error, the pairs taken as independent; 0 for one pair.
        seed_error: The same from one mean a seed: the pairs of a seed share early weights and batches.
        pairs: Number of pairs.
    """

    number: int | None
    imp_density: float
    paper_density: float
    density: float
    paper_held: float
    held: float
    paper_grouped_held: float
    grouped_held: float
    paper_accuracy: float
    accuracy: float
    difference: float
    error: float
    seed_error: float
    pairs: int


def find_pairs(rows: Iterable[Row]) -> list[Pair]:
    """Put the rows of the two rules together, by seed and round; other rows are left out.

    Raises:
        ValueError: A row has no partner, or there is none at all.
    """
    found: dict[tuple[int, int], dict[str, Row]] = {}
    for row in rows:
        if row.arm in (PAPER, AS_PAPER):
            found.setdefault((row.seed, row.number), {})[row.arm] = row
    for (seed, number), rules in found.items():
        if len(rules) < 2:
            raise ValueError(f"seed {seed}, round {number} has {', '.join(rules)} only; a pair needs both rules")
    if not found:
        raise ValueError("there is no ticket of the two rules")
    return [Pair(found[key][PAPER], found[key][AS_PAPER]) for key in sorted(found)]


def compare_rules(pairs: Sequence[Pair]) -> list[Line]:
    """Make one line a round and, last, one of all pairs.

    Args:
        pairs: At least one.
    """
    numbers = sorted({pair.ours.number for pair in pairs})
    lines = [_make_line(number, [pair for pair in pairs if pair.ours.number == number]) for number in numbers]
    return [*lines, _make_line(None, pairs)]


def _make_line(number: int | None, pairs: Sequence[Pair]) -> Line:
    papers, ours = [pair.paper for pair in pairs], [pair.ours for pair in pairs]
    by_seed: dict[int, list[float]] = {}
    for pair in pairs:
        by_seed.setdefault(pair.ours.seed, []).append(pair.difference)
    return Line(
        number=number,
        imp_density=statistics.fmean(row.imp_density for row in ours),
        paper_density=statistics.fmean(row.density for row in papers),
        density=statistics.fmean(row.density for row in ours),
        paper_held=statistics.fmean(row.held or 0.0 for row in papers),
        held=statistics.fmean(row.held or 0.0 for row in ours),
        paper_grouped_held=statistics.fmean(row.grouped_held or 0.0 for row in papers),
        grouped_held=statistics.fmean(row.grouped_held or 0.0 for row in ours),
        paper_accuracy=statistics.fmean(row.accuracy for row in papers),
        accuracy=statistics.fmean(row.accuracy for row in ours),
        difference=statistics.fmean(pair.difference for pair in pairs),
        error=_find_error([pair.difference for pair in pairs]),
        seed_error=_find_error([statistics.fmean(differences) for differences in by_seed.values()]),
        pairs=len(pairs),
    )


def _find_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def write_lines(path: Path, machine: BenchmarkRun, preset: Preset, rows: Iterable[Row], lines: Sequence[Line]) -> None:
    """Write the JSON file.

    Args:
        path: Where it goes.
        machine: Date, machine and versions.
        preset: The size of the experiment.
        rows: Every trained network.
        lines: What the rows come down to.
    """
    conditions = {key: value for key, value in machine.to_dict().items() if key not in ("schema", "schedule", "cases")}
    data = {
        "schema": SCHEMA_VERSION,
        "machine": conditions,
        "preset": dataclasses.asdict(preset),
        "lines": [dataclasses.asdict(line) for line in lines],
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    write_json(path, data)


def format_table(preset: Preset, lines: Sequence[Line], seeds: int) -> Table:
    """Format one line a round and one of all pairs."""
    title = f"Default regroup against the paper's rule, {preset.data}, {preset.recipe.epochs} epochs, seeds: {seeds}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    rules = ("stored: paper", "ours", "|w| %: paper", "ours", "grouped: paper", "ours", "accuracy %: paper", "ours")
    for header in ("round", "IMP density", *rules, "difference", "pairs"):
        table.add_column(header, justify="right", no_wrap=True)
    for line in lines:
        if line.number is None:
            table.add_section()
        table.add_row(*format_line(line))
    return table


def format_line(line: Line) -> list[str]:
    """Format the cells of one line."""
    return [
        "all" if line.number is None else str(line.number),
        f"{line.imp_density:.3f}",
        f"{line.paper_density:.4f}",
        f"{line.density:.4f}",
        f"{100 * line.paper_held:.1f}",
        f"{100 * line.held:.1f}",
        f"{100 * line.paper_grouped_held:.1f}",
        f"{100 * line.grouped_held:.1f}",
        f"{100 * line.paper_accuracy:.2f}",
        f"{100 * line.accuracy:.2f}",
        f"{100 * line.difference:+.3f} ± {100 * line.error:.3f}",
        str(line.pairs),
    ]


def format_pooled(lines: Sequence[Line]) -> str:
    """Say what all pairs together come down to."""
    pooled = lines[-1]
    held, grouped = zip(*(_find_gains(line) for line in lines), strict=True)
    return (
        f"All {pooled.pairs} pairs: accuracy {100 * pooled.difference:+.3f} ± {100 * pooled.error:.3f} points, "
        f"± {100 * pooled.seed_error:.3f} from one mean a seed; |w| "
        f"{held[-1]:+.1f} points ({min(held):+.1f} at the worst round), of the grouped layers {grouped[-1]:+.1f} "
        f"({min(grouped):+.1f})."
    )


def _find_gains(line: Line) -> tuple[float, float]:
    """Return how many points of |w| more the default rule keeps, of all prunable layers and of the grouped ones."""
    return 100 * (line.held - line.paper_held), 100 * (line.grouped_held - line.paper_grouped_held)


def print_lines(console: Console, machine: BenchmarkRun, preset: Preset, lines: Sequence[Line], seeds: int) -> None:
    """Print the table, what its columns are, the conditions, and what it comes down to."""
    console.print(format_table(preset, lines, seeds))
    for sentence in (
        "stored: stored weights over all weights of the prunable layers. |w|: share of the round's kept |w|; "
        "grouped: of the layers that the paper's rule groups, alone; the others keep all of it under both rules. "
        "difference: mean paired difference of the accuracies, in points, ± its standard error.",
        f"Each training on one thread. {format_machine(machine)}",
        format_pooled(lines),
    ):
        console.print(sentence, highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; return 0, or 1 if a part of it failed."""
    options = build_parser().parse_args(arguments)
    console = Console()
    console = console if console.is_terminal else Console(width=_WIDTH)
    preset = PRESETS[options.preset].with_epochs(options.epochs)
    seeds = range(options.seeds or preset.seeds)
    folder = options.folder or ROOT / "build" / "ticket" / f"{preset.name}-{preset.recipe.epochs}"
    machine = start_run(1, SCHEDULE)
    try:
        rows = run_seeds(preset, seeds, folder, console)
        lines = compare_rules(find_pairs(rows))
    except (SeedError, FxpruneError, ValueError) as error:
        console.print(f"The comparison stopped: {error}", style="red", markup=False)
        return 1
    write_lines(options.output, machine, preset, rows, lines)
    print_lines(console, machine, preset, lines, len(seeds))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ticket.rules", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    both = [name for name, preset in PRESETS.items() if {PAPER, AS_PAPER} <= set(preset.arm_names)]
    add("--preset", choices=both, default=RULES, help=f"size: {', '.join(both)} ({RULES})")
    add("--seeds", type=int, metavar="N", help="number of seeds (that of the preset)")
    add("--epochs", type=int, metavar="N", help="epochs of a training (those of the preset)")
    add("--folder", type=Path, help="where checkpoints lie; an interrupted run goes on there (build/ticket/...)")
    add("--output", type=Path, default=ROOT / "benchmarks" / "results" / "ticket-rules.json", metavar="FILE",
        help="the JSON file (benchmarks/results/ticket-rules.json)")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
