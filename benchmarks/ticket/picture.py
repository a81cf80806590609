"""The plot of the experiment: accuracy against measured latency."""

from __future__ import annotations

from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.ticket.arms import ALL_ARMS
from benchmarks.ticket.outcome import Outcome
from benchmarks.ticket.rows import DENSE

_PANEL_INCHES = (7.0, 4.6)
_GREY = "#8a8f98"


def draw_outcome(outcome: Outcome, path: Path) -> None:
    """Draw one panel a batch size to a PNG file, one line an arm through its rounds.

    Raises:
        ValueError: Nothing was timed.
    """
    batches = outcome.batches
    if not batches:
        raise ValueError("no ticket was timed; there is nothing to draw")
    figure = Figure(figsize=(_PANEL_INCHES[0] * len(batches), _PANEL_INCHES[1]), layout="constrained")
    for index, batch in enumerate(batches):
        _draw_panel(figure.add_subplot(1, len(batches), index + 1), outcome, batch, legend=index == 0)
    machine = outcome.machine
    figure.text(0.01, -0.02, f"{machine.cpu}, {machine.threads} threads, fp32, {machine.date[:10]}", fontsize=8)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def _draw_panel(axes: Axes, outcome: Outcome, batch: int, *, legend: bool) -> None:
    lines = {(line.arm, line.number): line for line in outcome.lines}
    colours = colormaps["tab20"]
    for index, (name, arm) in enumerate(ALL_ARMS.items()):
        points = [
            (latency.median_ms, 100 * lines[name, number].accuracy, 100 * lines[name, number].deviation)
            for number in outcome.preset.at
            if (latency := outcome.find(arm.mask_of or name, number, batch)) and (name, number) in lines
        ]
        if not points:
            continue
        x, y, deviation = zip(*points, strict=True)
        colour, style = colours(index), "--" if arm.mask_of else "-"
        axes.errorbar(x, y, deviation, fmt="none", elinewidth=1, capsize=2, ecolor=colour)
        axes.plot(x, y, marker="o", markersize=4, linewidth=1, linestyle=style, color=colour, label=arm.title)
    dense, fastest = lines[DENSE, 0], outcome.find_fastest_dense(batch)
    axes.axhspan(
        100 * (dense.accuracy - dense.deviation), 100 * (dense.accuracy + dense.deviation), color=_GREY, alpha=0.25
    )
    if fastest is not None:
        axes.axvline(fastest.median_ms, color=_GREY, linewidth=1, label=f"fastest dense engine ({fastest.engine})")
    axes.set_xlabel(f"median latency at batch {batch}, ms")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(f"{outcome.preset.data}, seeds: {dense.seeds}; grey band: dense", fontsize=10)
    if legend:
        axes.legend(fontsize=7)
