"""The activations alone, through a layer that passes its input on, against torch in float64."""

from __future__ import annotations

import math

import pytest
import torch

from fxprune.codegen.cpu.epilogue import activation_statements
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.schedules import Schedule
from fxprune.errors import CodegenError
from fxprune.operators import ACTIVATIONS
from tests.codegen.suite import Case, Suite, conv, draw_pattern, draw_tensors, empty_pattern, halo, run_kernel, view

UNITS = 2.0**-23
"""Distance of float32 numbers just above 1."""

POINTS = conv(1, 1, (1, 4096), 1)
"""Without stored cells the kernel computes activation(residual) for every number."""

FAMILIES: dict[str, Schedule] = {
    "rows": RowsSchedule(4, 1, (1, 4), "pixels", 64),
    "pixels": PixelsSchedule(16, 1, 2, "pixels"),
}
ARGUMENTS: dict[str, tuple[float, ...]] = {"hardtanh": (-1.5, 2.0)}


def alone() -> dict[str, Case]:
    """One case for each family and activation, whose residual is the activation's input."""
    bounds = {
        "hardtanh_relu6": (0.0, 6.0),
        "hardtanh_integers": (0, 6),
        "hardtanh_open_above": (-0.5, math.inf),
        "hardtanh_open_below": (-math.inf, 0.25),
    }
    wanted = {name: (name, ARGUMENTS.get(name, ())) for name in sorted(ACTIVATIONS)}
    wanted |= {name: ("hardtanh", args) for name, args in bounds.items()}
    return {
        f"{family}_{name}": Case(
            POINTS,
            schedule,
            empty_pattern(POINTS),
            bias=False,
            residual=True,
            activation=activation,
            activation_args=args,
        )
        for family, schedule in FAMILIES.items()
        for name, (activation, args) in wanted.items()
    }


def inside() -> dict[str, Case]:
    """Every activation behind sums, by vector and by lane, with and without residual and halo."""
    shape = conv(5, 21, (5, 9), 3, padding=1, batch=2)
    cases = {}
    for number, name in enumerate(sorted(ACTIVATIONS)):
        scattered, residual = number % 2 == 0, number % 3 != 0
        pattern = draw_pattern(shape, (8, 5), scattered=scattered)
        options = {"activation": name, "activation_args": ARGUMENTS.get(name, ()), "residual": residual}
        rows = Case(shape, RowsSchedule(8, 1, (1, 3), "pixels"), pattern, y_halo=halo((1, 1), (1, 1)))
        pixels = Case(shape, PixelsSchedule(8, 2, 2, "blocks"), pattern)
        for family, case in (("rows", rows), ("pixels", pixels)):
            cases[f"inside_{family}_{name}"] = Case(**{**vars(case), **options})
    return cases


CASES = alone() | inside()


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite(CASES)


def apply(suite: Suite, name: str, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Run an activation on up to 4096 numbers; returns the kernel's result and torch's in float64."""
    case, kernel = CASES[name], suite.kernels[name]
    tensors = draw_tensors(case, name)
    assert tensors.residual is not None
    tensors.residual.zero_()
    tensors.residual.view(-1)[: numbers.numel()] = numbers
    found = view(run_kernel(suite.library, name, kernel, tensors), kernel.work.y)
    return found.flatten()[: numbers.numel()], tensors.reference(case).flatten()[: numbers.numel()]


@pytest.mark.parametrize("name", inside())
def test_the_activation_follows_the_sum(suite: Suite, name: str) -> None:
    suite.check(name)


@pytest.mark.parametrize("name", alone())
def test_values_are_close_everywhere(suite: Suite, name: str) -> None:
    numbers = torch.linspace(-12, 12, 4096)
    found, wanted = apply(suite, name, numbers)
    assert float((found.double() - wanted).abs().max()) < 2e-6


@pytest.mark.parametrize("name", alone())
def test_extreme_inputs_give_the_limits(suite: Suite, name: str) -> None:
    numbers = torch.tensor([0.0, -0.0, 100, -100, 88, -88, 1e4, -1e4, 1e15, -1e15, 1e-30, -1e-30, 3, -3, 6, -6])
    found, wanted = apply(suite, name, numbers)
    assert bool(found.isfinite().all())
    error = (found.double() - wanted).abs() / wanted.abs().clamp(min=1)
    assert float(error.max()) < 1e-6, list(zip(numbers.tolist(), found.tolist(), wanted.tolist(), strict=True))


@pytest.mark.parametrize("name", alone())
def test_nan_stays_nan(suite: Suite, name: str) -> None:
    found, _ = apply(suite, name, torch.full((4096,), torch.nan))
    assert bool(found.isnan().all())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_exponential_is_within_a_few_units_of_the_last_place(suite: Suite, family: str) -> None:
    """For x <= -20 the sigmoid is exp(x) to float32 precision, so its relative error is that of the exponential."""
    numbers = torch.linspace(-86.5, -20, 4096)
    found, wanted = apply(suite, f"{family}_sigmoid", numbers)
    error = ((found.double() - wanted) / wanted).abs().max()
    assert float(error) < 4 * UNITS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["relu", "hardtanh_relu6", "hardtanh_open_above", "hardtanh_open_below"])
def test_comparing_activations_are_exact(suite: Suite, family: str, name: str) -> None:
    found, wanted = apply(suite, f"{family}_{name}", torch.linspace(-12, 12, 4096))
    assert torch.equal(found.double(), wanted)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_activation_of_the_graph_has_statements(name: str) -> None:
    assert activation_statements("acc[v]", name, ARGUMENTS.get(name, ()), "v")


def test_no_activation_has_no_statements() -> None:
    assert activation_statements("acc[v]", None, (), "v") == []


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unknown_activation_is_refused(family: str) -> None:
    case = Case(POINTS, FAMILIES[family], empty_pattern(POINTS), activation="mish")
    with pytest.raises(CodegenError, match=r"'mish' has no kernel statements; the kernels know .*gelu_tanh"):
        Suite({"unknown": case})
