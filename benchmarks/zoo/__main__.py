"""`python -m benchmarks.zoo`: run the acceptance matrix of channel elimination, or measure the pass alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from benchmarks.zoo.cell import Key
from benchmarks.zoo.kinds import KINDS
from benchmarks.zoo.models import TIER_A, TIER_B, find_shapes
from benchmarks.zoo.results import Results, count_exact
from benchmarks.zoo.session import Row, run_model
from benchmarks.zoo.speed import measure_speed

BATCHES = (1, 3)
RESULTS = Path(__file__).parents[1] / "results"
FILES = {"A": "zoo-channels.json", "B": "zoo-channels-b.json"}
"""Tier to the file of its cells, in `RESULTS`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 if a cell is not exact, or the pass too slow."""
    options = _make_parser().parse_args(arguments)
    if options.speed:
        return int(measure_speed(options.threads) > 0)
    results = Results(options.output or RESULTS / FILES[options.tier], resume=options.resume)
    chosen = [key for key in list_cells(options) if not (options.resume and results.has(key))]
    models = dict.fromkeys(key.model for key in chosen)
    lock, done = Lock(), 0

    def run(model: str) -> None:
        nonlocal done
        keys = [key for key in chosen if key.model == model]
        for row in run_model(keys, threads=options.threads, seconds=options.time_limit):
            with lock:
                done += 1
                results.add(row)
                print(f"{done:4d}/{len(chosen)} {_describe(row)}", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(run, models))
    exact, total = count_exact(results.rows)
    print(f"exact {exact} of {total}")
    return int(exact < total)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--tier", choices=("A", "B"), default="A", help="which list of models (default: A)")
    parser.add_argument("--models", nargs="+", choices=(*TIER_A, *TIER_B), help="only these", metavar="MODEL")
    parser.add_argument(
        "--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS), help="only these kinds of mask"
    )
    parser.add_argument("--quick", action="store_true", help="one shape and one batch size")
    parser.add_argument("--jobs", type=int, default=1, help="models at the same time (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch for each of them (default: 1)")
    parser.add_argument("--time-limit", type=float, default=600, help="seconds that one cell may take (default: 600)")
    parser.add_argument("--resume", action="store_true", help="keep the exact cells of the results file")
    parser.add_argument("--output", type=Path, help="results file (default: one a tier, in benchmarks/results)")
    parser.add_argument("--speed", action="store_true", help="measure time and peak memory of the pass alone, and stop")
    return parser


def list_cells(options: argparse.Namespace) -> list[Key]:
    """Return the cells that were asked for."""
    names = options.models or (TIER_A if options.tier == "A" else TIER_B)
    return [
        Key(name, kind, shape, batch)
        for name in names
        for kind in options.kinds
        for shape in find_shapes(name)[: 1 if options.quick else None]
        for batch in (BATCHES[-1:] if options.quick else BATCHES)
    ]


def _describe(row: Row) -> str:
    shape = row["shape"]
    assert isinstance(shape, list)
    error = "" if row["error"] is None else f"{float(str(row['error'])):.1e}"
    macs = f"macs {int(str(row['macs_before'])) / 1e6:.1f}M -> {int(str(row['macs_after'])) / 1e6:.1f}M"
    place = f"{row['model']} {row['kind']} {'x'.join(map(str, shape))} batch {row['batch']}"
    return f"{place}: {row['state']} {error} {macs}, pass {row['seconds']} s {row['reason']}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
