"""`tune`: what it finds is recorded, survives Ctrl-C and kills, and decides what `compile` runs."""

from __future__ import annotations

import concurrent.futures
import io
import json
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import fxprune
from fxprune import UnsupportedError
from fxprune.tuning import plan
from fxprune.tuning import search as search_module
from fxprune.tuning.process import shared_process
from fxprune.tuning.progress import Standing, TerminalProgress
from tests.compiling import TOLERANCE, largest_difference, run_masked
from tests.tuning.layers import X, network


@pytest.fixture(scope="module", autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    shared_process().close()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search little: the usual candidates and one more, four at a time."""
    monkeypatch.setattr(plan, "MOST", 1)
    monkeypatch.setattr(plan, "_BATCH", 4)


def tune(**arguments: object) -> Standing:
    return fxprune.tune(*network(), example_inputs=X, **arguments)  # type: ignore[arg-type]


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("a measurement was started")


@pytest.mark.usefixtures("small")
def test_it_records_what_compile_then_runs(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Standing] = []
    end = tune(progress=steps.append)
    assert (steps[0].done, steps[-1]) == (0, steps[-1])
    assert end.done == end.total == steps[-1].done > 4
    assert end.failed == 0
    assert 0 < end.best_us <= end.dense_us
    records = read(cache / "records.jsonl")
    assert len({record["workload"] for record in records if "shape" in str(record["workload"])}) == 2
    monkeypatch.setattr("fxprune.lowering.measure.time_calls", refuse)
    monkeypatch.setattr(search_module, "measure_batch", refuse)
    again = tune()
    assert (again.done, again.total) == (0, 0)
    model, masks = network()
    compiled = fxprune.compile(model, masks, example_inputs=X)
    assert all("recorded" in layer.reason for layer in compiled.report.layers)
    assert largest_difference(compiled(X), run_masked(model, masks, X)) <= TOLERANCE


@pytest.mark.usefixtures("small")
@pytest.mark.slow
def test_another_format_is_compiled_and_comes_back_from_a_file(cache: Path, tmp_path: Path) -> None:
    tune()
    path = cache / "records.jsonl"
    records = [record for record in read(path) if "winners in" not in str(record["workload"])]
    candidate = {**json.loads(next(str(r["candidate"]) for r in records if '"family":"rows"' in str(r["candidate"])))}
    candidate |= {"lanes": 8, "vectors": 1, "group_height": 8}
    for workload in sorted({str(record["workload"]) for record in records}):
        text = json.dumps(candidate, sort_keys=True, separators=(",", ":"))
        records.append(
            {**records[-1], "workload": workload, "candidate": text, "seconds": 1e-9, "details": {"final": 1}}
        )
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    model, masks = network()
    compiled = fxprune.compile(model, masks, example_inputs=X)
    if compiled.report.whole_model.startswith("dense"):
        pytest.skip("as a whole the model was faster dense, on a machine as busy as this one")
    assert all(layer.kernel.startswith("rows 8x1") for layer in compiled.report.layers)
    assert largest_difference(compiled(X), run_masked(model, masks, X)) <= TOLERANCE
    compiled.save(tmp_path / "model.fxp")
    for native in ("trust", "rebuild"):
        loaded = fxprune.load(tmp_path / "model.fxp", native=native)
        assert torch.equal(loaded(X), compiled(X))


@pytest.mark.usefixtures("small")
@pytest.mark.slow
def test_compile_max_searches_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, masks = network()
    first = fxprune.compile(model, masks, example_inputs=X, tune="max")
    monkeypatch.setattr("fxprune.lowering.measure.time_calls", refuse)
    monkeypatch.setattr("fxprune.lowering.whole.time_calls", refuse)
    monkeypatch.setattr(search_module, "measure_batch", refuse)
    monkeypatch.setattr(search_module, "time_calls", refuse)
    second = fxprune.compile(model, masks, example_inputs=X, tune="max")
    kernels = [[layer.kernel for layer in compiled.report.layers] for compiled in (first, second)]
    assert kernels[0] == kernels[1]


@pytest.mark.usefixtures("small")
@pytest.mark.slow
@pytest.mark.parametrize("make", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_an_executor_runs_the_trials(make: type[Executor], tmp_path: Path) -> None:
    spawned = multiprocessing.get_context("spawn")
    threads = make is ThreadPoolExecutor
    with ThreadPoolExecutor(2) if threads else ProcessPoolExecutor(2, mp_context=spawned) as executor:
        found = tune(executor=executor, database=tmp_path / "records.jsonl")
    assert (found.done, found.failed) == (found.total, 0)
    assert found.total > 4


@pytest.mark.usefixtures("small")
def test_a_lost_worker_costs_its_batch(tmp_path: Path) -> None:
    class Losing(ThreadPoolExecutor):
        def submit(self, *_: object, **__: object) -> concurrent.futures.Future[object]:  # type: ignore[override]
            future: concurrent.futures.Future[object] = concurrent.futures.Future()
            future.set_exception(concurrent.futures.BrokenExecutor("gone"))
            return future

    with Losing(1) as executor:
        found = tune(executor=executor, database=tmp_path / "records.jsonl")
    assert (found.done, found.failed) == (0, 0)
    assert found.total > 4


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_stop_keeps_what_was_found(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"

    def stop(standing: Standing) -> None:
        if standing.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(progress=stop, database=path)
    kept = [record for record in read(path) if record["candidate"] != "dense"]
    assert len(kept) == 4
    rest = tune(database=path)
    assert rest.done == rest.total > 0
    layers = [record for record in read(path) if "shape" in str(record["workload"])]
    texts = [(record["workload"], record["candidate"]) for record in layers]
    assert len(set(texts)) == rest.total + 4 + 2


@pytest.mark.usefixtures("small")
def test_when_the_time_is_up_no_batch_begins(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    found = tune(seconds=1e-6, database=path)
    assert (found.done, found.total > 4) == (0, True)
    assert {record["candidate"] for record in read(path)} == {"dense"}


def test_progress_is_silent_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with TerminalProgress() as show:
        show(Standing(1, 2, 0, 5.0, 10.0, 1.0))
    assert capfd.readouterr() == ("", "")


def test_progress_on_a_terminal_shows_best_so_far_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    with TerminalProgress() as show:
        show(Standing(5, 10, 0, 1000.0, 2000.0, 10.0))
    assert "5/10 trials, layers 2.00 -> 1.00 ms (2.00x), 10 s left" in terminal.getvalue()


def test_the_line_of_progress() -> None:
    assert str(Standing(0, 10, 0, 2000.0, 2000.0, 0.0)) == "0/10 trials, layers 2.00 -> 2.00 ms (1.00x)"
    assert str(Standing(5, 10, 1, 1000.0, 2000.0, 10.0)) == (
        "5/10 trials, 1 failed, layers 2.00 -> 1.00 ms (2.00x), 10 s left"
    )


def test_wrong_calls() -> None:
    model, masks = network()
    with pytest.raises(UnsupportedError, match="tune needs example_inputs"):
        fxprune.tune(model, masks)
    with pytest.raises(UnsupportedError, match="target='torch' has no kernels to tune"):
        tune(target="torch")
    with pytest.raises(UnsupportedError, match="tune=-1 is not known"):
        tune(seconds=-1)
