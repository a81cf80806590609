"""`fxprune.tune` on a Dask cluster: a real one of two processes on this machine."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, wait
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fxprune
from fxprune import UnsupportedError
from fxprune.fleet import DaskExecutor
from fxprune.tuning import plan
from tests.tuning.layers import X, network

needs_dask = pytest.mark.skipif(find_spec("distributed") is None, reason="Dask distributed is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # Dask's own warnings are not ours


class _Executor(Executor):
    """Hands out futures that the test ends."""

    def __init__(self) -> None:
        self.futures: list[Future[object]] = []

    def submit(self, *_: object, **__: object) -> Future[Any]:
        self.futures.append(Future())
        return self.futures[-1]


class _Client:
    """A client whose workers offer the given resources."""

    def __init__(self, *resources: dict[str, float]) -> None:
        self._workers = {str(index): {"resources": one} for index, one in enumerate(resources)}
        self.executor = _Executor()

    def get_executor(self, **options: object) -> Executor:
        assert options == {"resources": {"device": 1}, "pure": False}
        return self.executor

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        assert n_workers == -1
        return {"workers": self._workers}


def test_without_dask_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'fxprune\[fleet\]'"):
        DaskExecutor(_Client({"device": 1}))


@needs_dask
def test_workers_without_a_device_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"None of the 2 workers offers a device.*--resources device=1"):
        DaskExecutor(_Client({}, {"GPU": 1}))


@needs_dask
def test_results_errors_and_losses_are_handed_over() -> None:
    from distributed import KilledWorker

    client = _Client({"device": 1})
    executor = DaskExecutor(client)
    result, error, lost, gone, dropped = (executor.submit(print) for _ in range(5))
    inner = client.executor.futures
    inner[0].set_result(3)
    inner[1].set_exception(ValueError("wrong"))
    inner[2].set_exception(KilledWorker("task", SimpleNamespace(address="tcp://worker"), 3))
    inner[3].cancel()
    assert dropped.cancel()
    assert inner[4].cancelled()
    assert result.result(10) == 3
    assert isinstance(error.exception(10), ValueError)
    assert isinstance(lost.exception(10), BrokenExecutor)
    assert isinstance(gone.exception(10), BrokenExecutor)


def _span(seconds: float) -> tuple[int, float, float]:
    """Return the process and when it began and ended to sleep; workers run this."""
    start = time.time()
    time.sleep(seconds)
    return os.getpid(), start, time.time()


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    import dask
    from distributed import Client, LocalCluster

    dask.config.set({"distributed.scheduler.allowed-failures": 1})  # a worker that died is replaced once, not thrice
    options = {"n_workers": 2, "threads_per_worker": 2, "processes": True, "dashboard_address": None}
    with LocalCluster(**options, resources={"device": 1}) as cluster, Client(cluster) as connected:
        yield connected


@needs_dask
@pytest.mark.slow
def test_a_worker_with_one_device_runs_one_trial_at_a_time(client: Any) -> None:  # no annotations
    futures = [DaskExecutor(client).submit(_span, 0.2) for _ in range(6)]
    wait(futures)
    spans = sorted(future.result() for future in futures)
    assert len({process for process, _, _ in spans}) == 2, "both workers had something to do"
    for (process, _, end), (other, start, _) in itertools.pairwise(spans):
        assert process != other or start >= end, "two at once on one device, though its worker has two threads"


@needs_dask
@pytest.mark.slow
def test_a_search_runs_on_the_cluster(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MOST", 4)
    monkeypatch.setattr(plan, "_BATCH", 2)
    path = tmp_path / "records.jsonl"
    found = fxprune.tune(*network(), example_inputs=X, executor=DaskExecutor(client), database=path)
    assert (found.done, found.failed) == (found.total, 0)
    assert found.total > 4
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(record["seconds"] > 0 for record in records if not record["workload"].startswith("winners in"))
    again = fxprune.tune(*network(), example_inputs=X, executor=DaskExecutor(client), database=path)
    assert (again.done, again.total) == (0, 0)


@needs_dask
@pytest.mark.slow
def test_a_trial_that_ends_every_worker_is_lost_alone(client: Any) -> None:
    executor = DaskExecutor(client)
    assert isinstance(executor.submit(os._exit, 1).exception(), BrokenExecutor)
    assert executor.submit(_span, 0.0).result()[0] != os.getpid()
