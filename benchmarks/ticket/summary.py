"""From the rows of all seeds to one line an arm and round: means, paired differences, verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.ticket.arms import ALL_ARMS
from benchmarks.ticket.rows import DENSE, Row


@dataclass(frozen=True)
class Line:
    """One arm at one round, over all seeds.

    Attributes:
        arm: Name of the arm.
        number: The round.
        density: Mean density of the prunable layers.
        imp_density: The same of the round's own masks.
        held: Mean share of the round's |w| that is kept; None if the masks were not made from it.
        accuracy: Mean accuracy.
        deviation: Its standard deviation over the seeds; 0 for one seed.
        difference: Mean of the paired differences to the dense network of the same seed.
        error: Standard error of that mean; 0 for one seed.
        control: Accuracy over the control with random weights, mean of the paired differences; None without a control.
        verdict: "wins", "matches" or "loses" against dense.
        dead_rows: Mean number of rows that keep nothing.
        refused: Largest number of layers that stayed unstructured.
        seeds: Number of seeds.
    """

    arm: str
    number: int
    density: float
    imp_density: float
    held: float | None
    accuracy: float
    deviation: float
    difference: float
    error: float
    control: float | None
    verdict: str
    dead_rows: float
    refused: int
    seeds: int

    @property
    def winning(self) -> bool:
        """Whether it is a winning ticket: not worse than dense, and better than its control if it has one."""
        return self.verdict == "wins" and (self.control is None or self.control > 0)


def judge(difference: float, error: float) -> str:
    """Return the verdict on a mean paired difference to dense.

    Args:
        difference: The mean.
        error: Its standard error.
    """
    if difference >= 0:
        return "wins"
    return "matches" if difference >= -error else "loses"


def summarise(rows: Iterable[Row]) -> list[Line]:
    """Make a line of every arm and round, in the order of the rows.

    Raises:
        ValueError: A seed has no dense network.
    """
    cells: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        cells.setdefault((row.arm, row.number), []).append(row)
    dense = {row.seed: row.accuracy for row in cells.get((DENSE, 0), [])}
    lines = []
    for (arm, number), members in cells.items():
        if any(row.seed not in dense for row in members):
            raise ValueError(f"{arm} of round {number} has a seed without a dense network to compare with")
        control = ALL_ARMS[arm].control if arm in ALL_ARMS else ""
        lines.append(_make_line(members, dense, cells.get((control, number), [])))
    return lines


def _make_line(members: Sequence[Row], dense: dict[int, float], controls: Sequence[Row]) -> Line:
    accuracies = [row.accuracy for row in members]
    differences = [row.accuracy - dense[row.seed] for row in members]
    known = {row.seed: row.accuracy for row in controls}
    over = [row.accuracy - known[row.seed] for row in members if row.seed in known]
    held = [row.held for row in members if row.held is not None]
    mean, error = statistics.fmean(differences), _find_deviation(differences) / math.sqrt(len(differences))
    return Line(
        arm=members[0].arm,
        number=members[0].number,
        density=statistics.fmean(row.density for row in members),
        imp_density=statistics.fmean(row.imp_density for row in members),
        held=statistics.fmean(held) if held else None,
        accuracy=statistics.fmean(accuracies),
        deviation=_find_deviation(accuracies),
        difference=mean,
        error=error,
        control=statistics.fmean(over) if over else None,
        verdict=judge(mean, error),
        dead_rows=statistics.fmean(row.dead_rows for row in members),
        refused=max(row.refused for row in members),
        seeds=len(members),
    )


def _find_deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def find_claims(lines: Iterable[Line], dense: Line, least_sparsity: float = 0.7) -> list[Line]:
    """Return the regrouped tickets that match dense accuracy within one standard deviation of it.

    Args:
        lines: All lines.
        dense: That of the dense network.
        least_sparsity: Share of the prunable weights that a ticket must have pruned.
    """
    return [
        line
        for line in lines
        if line.arm in ALL_ARMS
        and ALL_ARMS[line.arm].regrouped
        and not ALL_ARMS[line.arm].mask_of
        and 1.0 - line.density >= least_sparsity
        and line.accuracy >= dense.accuracy - dense.deviation
    ]
