"""Command line: measure fxprune beside the dense engines, interleaved in one process.

Example:
    python -m benchmarks.run --model resnet50 --batch 1 --sparsity 0.8 --structure rowgroup
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.alone import add_alone_times
from benchmarks.case import Case
from benchmarks.console import format_machine, make_on_step, open_progress, print_case
from benchmarks.masks import STRUCTURES
from benchmarks.measure import Bench
from benchmarks.models import MODELS
from benchmarks.peers import PEERS, Peer, tuned
from benchmarks.plot import draw_run
from benchmarks.result import CaseResult, start_run
from benchmarks.timing import Schedule

RESULTS = Path(__file__).resolve().parent / "results"
"""Where the JSON files go unless `--output` says otherwise."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0, or 1 if an engine that ran gave a wrong output or fxprune did not run."""
    options = read_options(arguments)
    cases = list_cases(options)
    run = start_run(options.threads, Schedule(rounds=options.rounds))
    output = options.output or RESULTS / f"{'-'.join(options.model)}-{run.date[:19].replace(':', '')}.json"
    console = Console()
    bench = Bench(choose_peers(options), options.threads, run.schedule)
    steps = len(cases) * (bench.count_steps() + len(options.peers) * options.alone)
    with open_progress(console) as progress:
        on_step = make_on_step(progress, steps)
        for case in cases:
            result, _ = bench.measure(case, on_step)
            if options.alone:
                result = add_alone_times(result, options.threads, options.rounds, on_step)
            run = dataclasses.replace(run, cases=(*run.cases, result))
            run.write(output)
            print_case(console, result)
    console.print(format_machine(run))
    console.print(f"written: {output}", soft_wrap=True)
    if options.plot:
        draw_run(run, output.with_suffix(".png"))
        console.print(f"drawn: {output.with_suffix('.png')}", soft_wrap=True)
    return int(any(is_bad(result) for result in run.cases))


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; end the process with code 2 where it makes no sense."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.tune is None and options.database is not None:
        parser.error("--database is the file of a search's records; it needs --tune SECONDS")
    if options.tune is not None and options.alone:
        parser.error("--alone compiles once more, in another process and without a search; leave out --alone or --tune")
    return options


def choose_peers(options: argparse.Namespace) -> list[Peer]:
    """Return the engines that were asked for, fxprune with a search if that was asked for."""
    peers = [peer for peer in PEERS if peer.name in options.peers]
    if options.tune is None:
        return peers
    return [peer if peer.dense else tuned(peer, options.tune, options.database) for peer in peers]


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; options that take several values are swept."""
    threads = min(2, len(os.sched_getaffinity(0)))
    names = [peer.name for peer in PEERS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", nargs="+", choices=MODELS, default=["resnet50"], metavar="NAME", help=", ".join(MODELS))
    add("--batch", nargs="+", type=int, default=[1], metavar="N", help="batch sizes (1)")
    add("--sparsity", nargs="+", type=float, default=[0.8], metavar="S", help="shares of pruned weights (0.8)")
    add("--structure", nargs="+", choices=(*STRUCTURES, "all"), default=["rowgroup"], metavar="KIND",
        help=f"{', '.join(STRUCTURES)} or all (rowgroup)")  # fmt: skip
    add("--rows", nargs="+", type=int, default=[32], metavar="R", help="heights of the row groups (32)")
    add("--shuffle-rows", action="store_true", help="draw the rows of a group at random, not side by side")
    add("--cut", action="store_true", help="let the dense engines run the network without its dead channels")
    add("--seed", type=int, default=0, help="seed of weights, masks and input (0)")
    add("--rounds", type=int, default=10, help="interleaved rounds (10)")
    add("--threads", type=int, default=threads, help=f"threads of every engine ({threads})")
    add("--peers", nargs="+", choices=names, default=names, metavar="NAME", help=f"engines ({' '.join(names)})")
    add("--tune", type=float, metavar="SECONDS", help="let fxprune search so long before it compiles (no search)")
    add("--database", type=Path, metavar="FILE", help="records of the search, which are added to (a fresh file)")
    add("--alone", action="store_true", help="time each engine once more in a process of its own")
    add("--plot", action="store_true", help="draw the result to a PNG beside the JSON file")
    add("--output", type=Path, metavar="FILE", help="the JSON file (benchmarks/results/...)")
    return parser


def list_cases(options: argparse.Namespace) -> list[Case]:
    """List the cases that the options span, those of one model and batch size side by side."""
    structures = STRUCTURES if "all" in options.structure else options.structure
    return [
        Case(model, batch, structure, sparsity, rows, options.shuffle_rows, options.seed, options.cut)
        for model, batch, structure in itertools.product(options.model, options.batch, structures)
        for rows in (options.rows if structure == "rowgroup" else [0])
        for sparsity in options.sparsity
    ]


def is_bad(result: CaseResult) -> bool:
    """Say whether a peer gave a wrong output, or fxprune was asked for and did not run."""
    return any(peer.reason and (peer.error is not None or not peer.dense) for peer in result.peers)


if __name__ == "__main__":
    sys.exit(main())
