"""A trial runs the layer's own columns in a process of its own, and costs nobody else when it fails."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from fxprune import backend
from fxprune.codegen.target import CpuTarget
from fxprune.errors import CodegenError
from fxprune.tuning import measure as measure_module
from fxprune.tuning import process as process_module
from fxprune.tuning.measure import measure_batch
from fxprune.tuning.process import shared_process
from fxprune.tuning.trial import Batch, Job, Outcome
from tests.tuning.layers import CrashingJob, FailingJob, HangingJob, disguise, first_trial, jobs, same_columns


@pytest.fixture(scope="module")
def target() -> Iterator[CpuTarget]:
    yield backend.prepare_target("cpu", 2)
    shared_process().close()


def run(target: CpuTarget, batch: list[Job]) -> list[Outcome]:
    return measure_batch(Batch("a layer", tuple(batch), target))


def test_a_job_survives_being_sent(target: CpuTarget) -> None:
    (job,) = jobs(target, 1)
    sent = pickle.loads(pickle.dumps(job))
    assert (sent.candidate, sent.work, sent.schedule) == (job.candidate, job.work, job.schedule)
    assert same_columns(sent, job)


def test_it_runs_the_columns_of_the_layer(target: CpuTarget) -> None:
    (job,) = jobs(target, 1)
    _, trial = first_trial(target)
    packed = job.kernel().packed
    assert packed is not None
    assert packed.pattern.stored == trial.case.pattern.stored
    for block in range(packed.blocks):
        begin, length = int(packed.begin[block]), int(packed.length[block])
        row = int(packed.rows[block * packed.height])
        (group,) = [group for group in trial.case.pattern.groups if row in group.rows]
        assert packed.columns[begin : begin + length].tolist() == group.columns.tolist()


@pytest.mark.slow
def test_what_misbehaves_costs_only_itself(target: CpuTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "HANG_SECONDS", 20.0)
    good = jobs(target, 4)
    kinds = [Job, CrashingJob, HangingJob, FailingJob]
    batch = [disguise(job, kind) for job, kind in zip(good, kinds, strict=True)]
    found = run(target, [*batch, good[0]])
    assert [outcome.seconds is None for outcome in found] == [False, True, True, True, False]
    assert "ended its process with code -6" in found[1].note
    assert "no time after 20 s" in found[2].note
    assert found[3].note == "ValueError: no such kernel"
    assert [outcome.candidate for outcome in found[:4]] == [job.candidate for job in good]


def test_a_candidate_that_cannot_be_built_costs_only_itself(target: CpuTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    three = jobs(target, 3)
    bad = three[1].kernel().script("trial_1")

    def build(scripts: dict[str, str], _: CpuTarget) -> bytes:
        if bad in scripts.values():
            raise CodegenError("the second one cannot be built")
        return "+".join(scripts).encode()

    class Measuring:
        def measure(self, binary: bytes, _: int, jobs: list[tuple[str, Job]]) -> list[tuple[float, str]]:
            assert binary.decode() == "+".join(name for name, _ in jobs)
            return [(1.0, "")] * len(jobs)

    monkeypatch.setattr(measure_module, "build_library", build)
    monkeypatch.setattr(measure_module, "shared_process", Measuring)
    found = run(target, three)
    assert [(outcome.seconds, outcome.note) for outcome in found] == [
        (1.0, ""),
        (None, "the second one cannot be built"),
        (1.0, ""),
    ]
