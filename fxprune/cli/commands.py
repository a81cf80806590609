"""The commands; what they do stands in the package, here are only their words.

Exit codes: 0 done; 1 an error, whose message is on standard error; 2 the command line is wrong; 130 Ctrl-C.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, ParamSpec

import torch
import typer
from torch.utils._pytree import tree_map

from fxprune.cli import words
from fxprune.cli.model import read_inputs, read_model
from fxprune.cli.show import describe_masks, print_error, print_json, print_masks, print_text
from fxprune.compiler import compile as compile_model
from fxprune.errors import FxpruneError, UnsupportedError
from fxprune.integrate.artifact import load, read_reports
from fxprune.masks import load_masks
from fxprune.records.place import find_database
from fxprune.tuner import tune as tune_model

app = typer.Typer(
    help="Make pruned PyTorch models fast, with the same numbers.", no_args_is_help=True, pretty_exceptions_enable=False
)

_ERROR, _INTERRUPTED = 1, 130

_Words = ParamSpec("_Words")


def _with_exit_codes(command: Callable[_Words, None]) -> Callable[_Words, None]:
    """Turn errors of fxprune and Ctrl-C into messages and exit codes."""

    @functools.wraps(command)
    def run(*args: _Words.args, **kwargs: _Words.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except FxpruneError as error:
            print_error(str(error))
            raise typer.Exit(_ERROR) from error
        except KeyboardInterrupt as error:
            print_error("stopped; what was recorded is kept.")
            raise typer.Exit(_INTERRUPTED) from error

    return run


def _read_effort(text: str) -> str | float:
    """Return a level, or a number of seconds."""
    try:
        return float(text)
    except ValueError:
        return text


@app.command("compile")
@_with_exit_codes
def compile_command(
    model: words.Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    inputs: words.Inputs,
    masks: words.Masks = None,
    weights: words.Weights = None,
    target: words.Target = "cpu",
    structure: words.Structure = "exact",
    tune: Annotated[str, typer.Option(help="off, default, max, or a number of seconds.")] = "off",
    database: words.Database = None,
    threads: words.Threads = None,
    precision: words.Precision = "ieee",
    as_json: words.AsJson = False,
) -> None:
    """Compile a model, write it to a file and print the report."""
    compiled = compile_model(
        read_model(model, weights),
        masks,
        target,
        example_inputs=read_inputs(inputs),
        structure=structure,
        tune=_read_effort(tune),
        database=database,
        options={"threads": threads, "precision": precision},
    )
    compiled.save(output)
    if as_json:
        print_json({"output": str(output), "report": compiled.report.to_dict()})
    else:
        print_text(f"{compiled.report}\nwritten to {output}")


@app.command("tune")
@_with_exit_codes
def tune_command(
    model: words.Model,
    inputs: words.Inputs,
    masks: words.Masks = None,
    weights: words.Weights = None,
    target: words.Target = "cpu",
    structure: words.Structure = "exact",
    seconds: Annotated[float | None, typer.Option(help="Begin no trial later than this.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Build in so many threads at once; measured is one by one.")] = 1,
    database: words.Database = None,
    threads: words.Threads = None,
    precision: words.Precision = "ieee",
    build_only: Annotated[bool, typer.Option("--build-only", help="GPUs: compile all kernels, measure none.")] = False,
    measure_only: Annotated[bool, typer.Option("--measure-only", help="GPUs: measure what was compiled so.")] = False,
    as_json: words.AsJson = False,
) -> None:
    """Search for faster kernels; `compile` uses what was found, and a search that was stopped goes on."""
    if build_only and measure_only:
        raise UnsupportedError("--build-only and --measure-only exclude each other; without either both are done.")
    place = find_database(database)
    with ThreadPoolExecutor(workers) as executor:
        found = tune_model(
            read_model(model, weights),
            masks,
            target,
            example_inputs=read_inputs(inputs),
            structure=structure,
            executor=None if workers == 1 else executor,
            database=place,
            seconds=seconds,
            only="build" if build_only else "measure" if measure_only else None,
            options={"threads": threads, "precision": precision},
        )
    if as_json:
        print_json({"database": str(place), **asdict(found)})
    else:
        print_text(f"{found.done} kernels built" if build_only else f"{found}\nrecorded in {place}")


@app.command("report")
@_with_exit_codes
def report_command(
    path: words.Saved,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print markdown.")] = False,
    as_json: words.AsJson = False,
) -> None:
    """Print what was done to every layer of a compiled model; nothing in the file is run."""
    reports = [report for _, report in read_reports(path)]
    if as_json:
        print_json([report.to_dict() for report in reports])
        return
    print_text("\n\n".join(report.to_markdown() if markdown else str(report) for report in reports))


@app.command("bench")
@_with_exit_codes
def bench_command(
    path: words.Saved,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, in turns; the best of each counts.")] = 15,
    as_json: words.AsJson = False,
) -> None:
    """Time a compiled model in turns with the same graph on dense torch."""
    from fxprune.lowering.measure import time_calls  # loads TVM's runtime, which other commands do not need

    ours, dense = load(path), load(path, native="dense")
    found = []
    for form, report in read_reports(path):
        args, kwargs = tree_map(_fill, form.arguments())
        with torch.no_grad():
            calls = [functools.partial(model, *args, **kwargs) for model in (ours, dense)]
            fast, slow = (seconds * 1e3 for seconds in time_calls(calls, rounds))
        shapes = ", ".join("x".join(map(str, shape)) for shape in report.input_shapes)
        found.append({"inputs": report.input_shapes, "ms": fast, "dense_ms": slow, "speed_up": slow / fast})
        if not as_json:
            print_text(f"{shapes}: {fast:.3f} ms, dense {slow:.3f} ms, {slow / fast:.2f}x")
    if as_json:
        print_json(found)


def _fill(value: object) -> object:
    """Return random numbers in place of a tensor of floats, zeros in place of any other."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.randn_like(value) if value.is_floating_point() else torch.zeros_like(value)


@app.command("masks")
@_with_exit_codes
def masks_command(
    path: Annotated[Path, typer.Argument(help="File or folder with masks, of any format that load_masks reads.")],
    model: Annotated[str | None, typer.Option(help="module:function of the model that they are for.")] = None,
    as_json: words.AsJson = False,
) -> None:
    """Print the masks of a file: name, shape and density of each."""
    masks = load_masks(path, model=None if model is None else read_model(model, None))
    if as_json:
        print_json(describe_masks(masks))
    else:
        print_masks(masks)


def main() -> None:
    """Run the command line."""
    sys.exit(app())
