"""Command line: every convolution of a masked model by itself.

Example:
    python -m benchmarks.layers --model resnet50 --sparsity 0.8
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.case import add_case_options
from benchmarks.layers.measure import find_convolutions, measure_layers
from benchmarks.layers.text import format_layers
from benchmarks.masks import make_masks
from benchmarks.models import CONVOLUTIONAL, build_model, make_input
from benchmarks.neighbours import NeighbourWatch
from benchmarks.result import start_run
from benchmarks.run import RESULTS
from benchmarks.timing import Schedule
from fxprune import backend
from fxprune.arguments import Effort


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write it as JSON and Markdown; return 0."""
    options = _build_parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    run = start_run(options.threads, Schedule(rounds=options.rounds))
    model = build_model(options.model)
    masks = make_masks(model, options.structure, options.sparsity, 0, rows=options.rows)
    target = backend.prepare_target("cpu", options.threads, measured=True)
    known = options.database and backend.open_records(options.database, target, Effort("off", None)).known
    console, watch = Console(), NeighbourWatch()
    with console.status("capturing") as status:
        layers = find_convolutions(model, masks, make_input(options.model, options.batch), target)
        status.update("building kernels")
        table = measure_layers(layers, target, known or None, options.rounds, status.update)
    structure = f"row groups of {options.rows}" if options.structure == "rowgroup" else options.structure
    about = {"model": options.model, "structure": structure, "sparsity": options.sparsity, "batch": options.batch,
             "rounds": options.rounds, "threads": options.threads, "date": run.date, "cpu": run.cpu,
             "other_cores": watch.read_cores() or 0.0, "versions": run.versions}  # fmt: skip
    output = options.output or RESULTS / f"layers-{options.model}-{options.structure}-{options.sparsity}.json"
    text = format_layers(table, about)
    output.write_text(json.dumps({**about, **table.to_dict()}, indent=1) + "\n")
    output.with_suffix(".md").write_text(text)
    console.print(text, soft_wrap=True, markup=False, highlight=False)
    console.print(f"written: {output}", soft_wrap=True)
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add_case_options(parser, CONVOLUTIONAL)
    add("--rounds", type=int, default=30, help="rounds of every measurement (30)")
    add("--database", type=Path, metavar="FILE", help="records of `fxprune tune`: their best kernels are timed too")
    add("--output", type=Path, metavar="FILE", help="the JSON file (benchmarks/results/...)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
