"""Draw a benchmark run: bars for a single case, lines over sparsity for a sweep."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.result import BenchmarkRun, CaseResult, read_run

_DENSE_COLOUR, _OUR_COLOUR = "#8a8f98", "#1f6feb"
_PANEL_INCHES = (6.4, 4.2)


def draw_run(run: BenchmarkRun, path: Path) -> None:
    """Draw one panel for each model and batch size to a PNG file.

    A panel with one case shows the medians of all engines; one with more shows the speed-up over the fastest dense
    peer against sparsity, one line for each kind of mask, with the limit from MACs dashed.

    Raises:
        ValueError: The run has no case.
    """
    panels: dict[tuple[str, int], list[CaseResult]] = defaultdict(list)
    for result in run.cases:
        panels[result.case.model, result.case.batch].append(result)
    if not panels:
        raise ValueError("the run has no case; there is nothing to draw")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(_PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * rows), layout="constrained")
    for index, results in enumerate(panels.values()):
        axes = figure.add_subplot(rows, columns, index + 1)
        if len(results) == 1:
            _draw_bars(axes, results[0])
        else:
            _draw_lines(axes, results)
    figure.text(0.01, -0.02, f"{run.cpu}, {run.threads} threads, fp32, {run.date[:10]}", fontsize=8)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def _draw_bars(axes: Axes, result: CaseResult) -> None:
    timed = [(peer, peer.median_ms) for peer in result.peers if peer.median_ms is not None]
    colours = [_DENSE_COLOUR if peer.dense else _OUR_COLOUR for peer, _ in timed]
    bars = axes.barh([peer.title for peer, _ in timed], [median for _, median in timed], color=colours)
    axes.bar_label(bars, [f"{median:.1f} ms" for _, median in timed], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.22)
    axes.set_xlabel("median latency, ms")
    ratio = result.ratio(result.fastest_dense())
    speed_up = "" if ratio is None else f"\n{ratio:.2f}x the fastest dense peer, limit from MACs {result.limit:.2f}x"
    axes.set_title(result.case.label + speed_up, fontsize=10)


def _draw_lines(axes: Axes, results: Sequence[CaseResult]) -> None:
    lines: dict[str, list[CaseResult]] = defaultdict(list)
    for result in sorted(results, key=lambda result: result.case.sparsity):
        lines[result.case.mask_label].append(result)
    for label, line in lines.items():
        points = [(r.case.sparsity, ratio) for r in line if (ratio := r.ratio(r.fastest_dense())) is not None]
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=label)
    limits = {result.case.sparsity: result.limit for result in results}
    axes.plot(sorted(limits), [limits[s] for s in sorted(limits)], "k--", linewidth=1, label="limit from MACs")
    axes.axhline(1.0, color=_DENSE_COLOUR, linewidth=1)
    axes.set_xlabel("share of pruned weights")
    axes.set_ylabel("speed-up over the fastest dense fp32 peer")
    axes.set_title(f"{results[0].case.model}, batch {results[0].case.batch}", fontsize=10)
    axes.legend(fontsize=8)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        draw_run(read_run(Path(name)), Path(name).with_suffix(".png"))
