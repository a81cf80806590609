"""The first run on a GPU decides between kernels and dense torch; twins on the CPU stand for the GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune import CompiledModule
from fxprune.errors import UnsupportedError
from fxprune.guarded import GuardedProgram
from tests.compiling import TOLERANCE, draw_masks, kernels, largest_difference, row_groups, run_masked
from tests.lowering.cuda.test_program import ARCH, chain
from tests.lowering.cuda.twin import TwinDevice, program_of, tie, tie_to_twin

pytestmark = pytest.mark.usefixtures("no_nvcc", "all_kernels")
X = torch.randn(4, 3, 12, 13, generator=torch.Generator().manual_seed(0))


def make(options: Mapping[str, object] | None = None) -> tuple[nn.Module, dict[str, torch.Tensor], CompiledModule]:
    """Return a model with its masks, and compiled."""
    torch.manual_seed(0)
    model = chain()
    masks = draw_masks(model, row_groups(16, 0.4))
    return model, masks, fxprune.compile(model, masks, ARCH, example_inputs=X, options=options)


def run(compiled: CompiledModule, kernels_us: float, dense_us: float) -> tuple[TwinDevice, list[object]]:
    """Run three times on a device on which both take so long; returns it and the results."""
    device = tie_to_twin(compiled)
    device.times = {"kernels": kernels_us, "dense": dense_us}
    return device, [compiled(X + number) for number in range(3)]


def test_kernels_that_are_faster_stay() -> None:
    model, masks, compiled = make()
    assert "nothing was measured" in compiled.report.whole_model
    device, results = run(compiled, 1000.0, 1500.0)
    assert compiled.report.whole_model == ("sparse: measured 1.000 ms on twin, the same graph on dense torch 1.500 ms")
    assert len(device.launches) == 4 * len(kernels(compiled)), "three runs, and one that could not be recorded"
    for number, found in enumerate(results):
        assert largest_difference(found, run_masked(model, masks, X + number)) <= TOLERANCE


def test_kernels_that_are_slower_are_given_back_and_nothing_changes_but_the_time() -> None:
    model, masks, compiled = make()
    before, chosen = compiled.report, len(kernels(compiled))
    device, results = run(compiled, 1500.0, 1000.0)
    assert len(device.launches) == chosen, "only the first run was one with kernels"
    report = compiled.report
    assert report.whole_model == (
        "dense: the whole model is no faster with kernels: measured 1.500 ms on twin, on dense torch 1.000 ms"
    )
    assert [layer.name for layer in report.layers] == [layer.name for layer in before.layers]
    assert {layer.kernel for layer in report.layers} == {"dense: torch"}
    assert all("faster on dense torch on this GPU" in layer.reason for layer in report.layers)
    assert all(layer.macs_run >= layer.macs_kept and not layer.heights for layer in report.layers)
    for number, found in enumerate(results):
        assert largest_difference(found, run_masked(model, masks, X + number)) <= TOLERANCE


@pytest.mark.parametrize(("kernels_us", "sparse"), [(96.0, True), (98.0, False)])
def test_a_gain_within_noise_is_none(kernels_us: float, sparse: bool) -> None:
    compiled = make()[2]
    run(compiled, kernels_us, 100.0)
    assert compiled.report.whole_model.startswith("sparse" if sparse else "dense")


def test_both_are_really_timed_and_compute_the_same() -> None:
    model, masks, compiled = make()
    seen: dict[str, object] = {}

    class Timing(TwinDevice):
        def time(self, calls: Mapping[str, Callable[[], object]]) -> Mapping[str, float]:
            for name, call in calls.items():
                before = len(self.launches)
                (seen[name],) = call()  # type: ignore[misc]
                seen[f"launches of {name}"] = len(self.launches) - before
            return super().time(calls)

    tie(compiled, Timing(program_of(compiled)))
    compiled(X)
    wanted = run_masked(model, masks, X)
    assert largest_difference(seen["kernels"], wanted) <= TOLERANCE
    assert largest_difference(seen["dense"], wanted) <= TOLERANCE
    assert (bool(seen["launches of kernels"]), seen["launches of dense"]) == (True, 0)


def test_while_somebody_records_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = make()[2]
    device = tie_to_twin(compiled)
    monkeypatch.setattr(device, "is_recording", lambda: True)
    compiled(X)
    assert "nothing was measured" in compiled.report.whole_model
    monkeypatch.setattr(device, "is_recording", lambda: False)
    compiled(X)
    assert "measured 1.000 ms" in compiled.report.whole_model


@pytest.mark.parametrize("error", [UnsupportedError("no room"), torch.OutOfMemoryError("no room")])
def test_without_room_for_both_the_kernels_stay(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    model, masks, compiled = make()
    device = tie_to_twin(compiled)

    def fail(calls: object) -> Mapping[str, float]:
        del calls
        raise error

    monkeypatch.setattr(device, "time", fail)
    assert largest_difference(compiled(X), run_masked(model, masks, X)) <= TOLERANCE
    assert compiled.report.whole_model == (
        "sparse: not confirmed on twin, where dense torch beside it cannot run: no room"
    )


def test_the_cost_model_is_trusted_where_nothing_may_be_measured() -> None:
    compiled = make({"measure": False})[2]
    assert not isinstance(compiled._last().program, GuardedProgram)
    run(compiled, 1500.0, 1000.0)
    assert "nothing was measured" in compiled.report.whole_model


def test_a_model_without_kernels_has_nothing_to_decide() -> None:
    compiled = fxprune.compile(nn.Conv2d(3, 4, 1).eval(), None, ARCH, example_inputs=X, options={"measure": True})
    assert isinstance(compiled._last().program, GuardedProgram) == bool(kernels(compiled))


@pytest.mark.parametrize("native", ["trust", "rebuild"])
def test_a_loaded_model_decides_again_whatever_was_found_before(tmp_path: Path, native: str) -> None:
    model, masks, compiled = make()
    run(compiled, 1500.0, 1000.0)
    compiled.save(tmp_path / "model.fxp")
    loaded = fxprune.load(tmp_path / "model.fxp", native=native)
    assert "nothing was measured" in loaded.report.whole_model
    assert len(kernels(loaded)) > 0
    device, results = run(loaded, 1000.0, 1500.0)
    assert loaded.report.whole_model.startswith("sparse: measured 1.000 ms on twin")
    assert device.launches
    assert largest_difference(results[0], run_masked(model, masks, X)) <= TOLERANCE
    again = fxprune.load(tmp_path / "model.fxp", native=native)
    run(again, 1500.0, 1000.0)
    assert {layer.kernel for layer in again.report.layers} == {"dense: torch"}


def test_a_model_saved_without_measuring_is_loaded_without(tmp_path: Path) -> None:
    make({"measure": False})[2].save(tmp_path / "model.fxp")
    assert not isinstance(fxprune.load(tmp_path / "model.fxp")._last().program, GuardedProgram)
