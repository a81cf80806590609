"""The space: schedules and formats, every point legal, the model's favourites first."""

from __future__ import annotations

import pytest

from fxprune import backend
from fxprune.codegen.cpu import pixel_tiles, row_walk
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.pixel_schedules import pixels_space
from fxprune.codegen.row_schedules import rows_space
from fxprune.codegen.target import CpuTarget
from fxprune.covering import cover_at
from fxprune.lowering.known import candidate_text, read_candidate
from fxprune.lowering.measure import trial_workload
from fxprune.lowering.select import usual_candidates
from fxprune.records.record import Context, Record
from fxprune.tuning import plan
from fxprune.tuning.plan import find_candidates, plan_batches
from tests.tuning.layers import first_trial, jobs


@pytest.fixture(scope="module")
def target() -> CpuTarget:
    return backend.prepare_target("cpu", 2)


def test_every_point_is_legal(target: CpuTarget) -> None:
    _, trial = first_trial(target)
    work = trial_workload(trial, "rows", 2)
    found = list(rows_space(work, trial.case.pattern, target))
    schedules = [candidate.schedule for candidate in found]
    assert len(set(schedules)) == len(schedules) > 100
    for schedule in schedules:
        assert isinstance(schedule, RowsSchedule)
        assert row_walk.fits(work, schedule)
        assert schedule.vectors * (schedule.tile[0] * schedule.tile[1] + 1) <= target.registers
    work = trial_workload(trial, "pixels", 2)
    planes = [candidate.schedule for candidate in pixels_space(work, trial.case.pattern, target)]
    assert len(set(planes)) == len(planes) > 20
    for schedule in planes:
        assert isinstance(schedule, PixelsSchedule)
        assert pixel_tiles.fits(work, schedule)


def test_formats_are_searched_with_schedules(target: CpuTarget) -> None:
    _, trial = first_trial(target)
    found = find_candidates(trial, target)
    heights = {candidate.group_height for candidate, _ in found}
    assert None in heights
    assert len(heights) > 1
    for candidate, at in found:
        assert at.case.pattern.stored >= trial.case.annotation.nnz
        assert (at.case.pattern == trial.case.pattern) == (candidate.group_height is None)


def test_the_usual_ones_come_first_and_nothing_twice(target: CpuTarget) -> None:
    _, trial = first_trial(target)
    usual = [one for family in usual_candidates(trial, target).values() for one in family]
    found = [candidate for candidate, _ in find_candidates(trial, target)]
    assert found[: len(usual)] == usual
    rest = found[len(usual) :]
    for height in {candidate.group_height for candidate in rest}:
        times = [candidate.predicted_us for candidate in rest if candidate.group_height == height]
        assert times == sorted(times), "the most promising of each height come first"
    assert len({candidate_text(candidate) for candidate in found}) == len(found) <= len(usual) + plan.MOST


def test_a_record_gives_its_candidate_back(target: CpuTarget, caplog: pytest.LogCaptureFixture) -> None:
    _, trial = first_trial(target)
    context = Context("t", "k", "d", {})
    for candidate, _ in find_candidates(trial, target):
        record = Record(context, "w", candidate_text(candidate), 1.0, "", {"predicted_us": candidate.predicted_us})
        assert read_candidate(record) == candidate
    for text in ("", "{}", "[]", '{"family": "rows", "group_height": null}', '{"family": "tiles", "group_height": 1}'):
        assert read_candidate(Record(context, "w", text, 1.0)) is None
    assert caplog.text.count("is not one of this version") == 5


def test_a_cover_at_one_height_covers_the_mask(target: CpuTarget) -> None:
    _, trial = first_trial(target)
    mask = trial.case.annotation.mask.numpy().reshape(trial.case.shape.channels_out, -1)
    assert cover_at(trial.case, None) is trial.case
    for height in (1, 8, 32):
        covered = mask.copy()
        for group in cover_at(trial.case, height).pattern.groups:
            covered[group.rows[:, None], group.columns[None, :]] = False
        assert not covered.any()


def test_batches_take_turns(target: CpuTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_BATCH", 2)
    found = jobs(target, 5)
    batches = plan_batches({"a": found, "b": found[:2], "c": []}, target)
    assert [(batch.workload, len(batch.jobs)) for batch in batches] == [("a", 2), ("b", 2), ("a", 2), ("a", 1)]
