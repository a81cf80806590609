"""Kernels that win layer by layer are given back if the whole model is no faster with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

import fxprune
from tests.compiling import TOLERANCE, draw_masks, kernels, largest_difference, row_groups, run_masked

Calls = Sequence[Callable[[], object]]


def compile_timed(
    monkeypatch: pytest.MonkeyPatch, *measured: tuple[float, float]
) -> tuple[fxprune.CompiledModule, float]:
    """Compile where every kernel beats its dense layer and the whole model takes `measured` (kernels, dense) seconds.

    Returns:
        The compiled model, and its error as a share of the largest output.
    """
    results: Iterator[tuple[float, float]] = iter(measured)
    monkeypatch.setattr("fxprune.lowering.measure.time_calls", lambda calls: [1e-5] * (len(calls) - 1) + [1e-3])
    monkeypatch.setattr("fxprune.lowering.whole.time_calls", lambda _calls: list(next(results)))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.ReLU()).eval()
    masks = draw_masks(model, row_groups(16, 0.2))
    x = torch.randn(1, 32, 8, 8)
    compiled = fxprune.compile(model, masks, example_inputs=x, tune="off")
    assert next(results, None) is None, "a measurement was left out"
    return compiled, largest_difference(compiled(x), run_masked(model, masks, x))


def test_a_faster_model_keeps_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, error = compile_timed(monkeypatch, (0.001, 0.002))
    assert compiled.report.whole_model == "sparse: measured 1.00 ms, the same graph on dense torch 2.00 ms"
    assert kernels(compiled)
    assert error <= TOLERANCE


@pytest.mark.parametrize("ours", [0.00195, 0.004])
def test_a_model_that_is_no_faster_gives_them_back(monkeypatch: pytest.MonkeyPatch, ours: float) -> None:
    compiled, error = compile_timed(monkeypatch, (ours, 0.002), (ours, 0.002))
    assert compiled.report.whole_model.startswith("dense: the whole model is no faster with kernels")
    assert not kernels(compiled)
    assert "no faster with kernels" in compiled.report.layers[0].reason
    assert error <= TOLERANCE


def test_one_stall_of_the_machine_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, _ = compile_timed(monkeypatch, (0.450, 0.002), (0.001, 0.003))
    assert compiled.report.whole_model == "sparse: measured 1.00 ms, the same graph on dense torch 2.00 ms"
    assert kernels(compiled)
