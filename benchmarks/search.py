"""How good a search is that was given some minutes, against one of the whole space, and what a second worker saves.

Example:
    python -m benchmarks.search --model resnet50 --sparsity 0.8 --seconds 540
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import fxprune
from benchmarks.case import Problem, add_case_options, build_problem, read_case
from benchmarks.console import format_machine
from benchmarks.result import start_run, write_json
from benchmarks.timing import Schedule, time_interleaved
from fxprune.tuning.measure import build_batch
from fxprune.tuning.trial import Batch

_COMPILATIONS = 3
"""Compilations of each kind: where buffers lie in physical memory alone makes a few per cent."""


class _Collector(Executor):
    """Takes the batches of a search and runs none: the search waits until its time is up."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def submit(self, _function: Callable[..., Any], /, *args: Any, **_: Any) -> Future[Any]:
        (batch,) = args
        self.batches.append(batch)
        return Future()


def search(problem: Problem, database: Path, seconds: float | None) -> dict[str, float]:
    """Search and return how far it came.

    Args:
        problem: The model.
        database: File of the records, gone on with if there is one.
        seconds: Time for trials; None = the whole space.
    """
    start = time.perf_counter()
    standing = fxprune.tune(problem.model, problem.masks, example_inputs=problem.x, database=database, seconds=seconds)
    taken = time.perf_counter() - start
    return {"seconds": taken, "trials": standing.done, "of": standing.total, "layers_us": standing.best_us}


def compare(problem: Problem, databases: dict[str, Path], schedule: Schedule) -> dict[str, list[float]]:
    """Return the median milliseconds of several compilations with each of some databases, and of as many untuned."""
    compiled = {}
    for number in range(_COMPILATIONS):
        for name, database in databases.items():
            compiled[name, number] = fxprune.compile(
                problem.model, problem.masks, example_inputs=problem.x, tune="default", database=database
            )
        compiled["untuned", number] = fxprune.compile(problem.model, problem.masks, example_inputs=problem.x)
    calls = {f"{name} {number}": lambda model=model: model(problem.x) for (name, number), model in compiled.items()}
    timings = time_interleaved(calls, schedule)
    names = [*databases, "untuned"]
    return {name: [timings[f"{name} {number}"].median_ms for number in range(_COMPILATIONS)] for name in names}


def find_batches(problem: Problem) -> list[Batch]:
    """Return the batches of a search from nothing, in its order."""
    collector = _Collector()
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder, "records.jsonl")
        fxprune.tune(
            problem.model, problem.masks, example_inputs=problem.x, database=database, seconds=0.01, executor=collector
        )
    return collector.batches


def time_builds(batches: Sequence[Batch], workers: int) -> float:
    """Return the seconds that workers take to build some batches, processes already started."""
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as executor:
        list(executor.map(_build, batches[: 2 * workers]))
        start = time.perf_counter()
        list(executor.map(_build, batches))
        return time.perf_counter() - start


def _build(batch: Batch) -> None:
    build_batch(batch)  # libraries are not sent back


def main(arguments: Sequence[str] | None = None) -> int:
    """Search, compare, print and write."""
    options = _build_parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    case = read_case(options)
    problem, run, console = build_problem(case), start_run(options.threads, Schedule()), Console()
    found: dict[str, object] = {"machine": dataclasses.asdict(run), "case": dataclasses.asdict(case)}
    with tempfile.TemporaryDirectory() as folder:
        limited, whole = Path(folder, "limited.jsonl"), Path(folder, "whole.jsonl")
        found["limited"] = search(problem, limited, options.seconds)
        shutil.copy(limited, whole)
        found["whole"] = search(problem, whole, None)
        found["median_ms"] = compare(problem, {"limited": limited, "whole": whole}, run.schedule)
    batches = find_batches(problem)[: options.batches]
    found["build_seconds"] = {str(workers): time_builds(batches, workers) for workers in (1, 2)}
    console.print(format_machine(run))
    console.print({name: value for name, value in found.items() if name != "machine"})
    write_json(Path(options.output), found)
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    add_case_options(parser)
    parser.add_argument("--seconds", type=float, default=540, help="of the limited search")
    parser.add_argument("--batches", type=int, default=40, help="batches of eight trials to build with 1 and 2 workers")
    parser.add_argument("--output", default="benchmarks/results/search.json")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
