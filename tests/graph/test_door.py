"""Wrong models, programs and calls: each an UnsupportedError that says what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim, export

from fxprune.errors import UnsupportedError
from fxprune.graph import capture
from tests.networks import Function

X = torch.ones(2, 3)


def halfway() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    model.eval()[1].train()
    return model


def integer() -> nn.Module:
    layer = nn.Linear(3, 3).eval()
    layer.weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int64), requires_grad=False)
    return layer


def quantised() -> nn.Module:
    layer = nn.Module().eval()
    layer.register_buffer("table", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))
    return layer


def sparse() -> nn.Module:
    layer = nn.Linear(3, 3).eval()
    layer.weight = nn.Parameter(torch.eye(3).to_sparse())
    return layer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(3, 3), r"Linear is in training mode; call model.eval\(\)"),
        (halfway, r"Module '1' \(Dropout\) is in training mode"),
        (lambda: nn.Sequential(nn.BatchNorm1d(3)), "in training mode"),
        (lambda: nn.Linear(3, 3, device="meta").eval(), r"'weight' is on the meta device.*load_state_dict"),
        (lambda: nn.Linear(3, 3, dtype=torch.complex64).eval(), r"'weight' is complex"),
        (lambda: nn.LazyLinear(3).eval(), r"'weight' is not initialised.*Run the model once"),
        (integer, r"'weight' is of type torch.int64.*model.float\(\)"),
        (quantised, r"'table' is quantised"),
        (sparse, r"'weight' is stored as torch.sparse_coo.*to_dense"),
        (lambda: "model.pt", "model is a str; it needs to be an nn.Module"),
    ],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_models(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        capture(make(), (X,), {})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.ones(0, 3),), r"Input 0 has shape \[0, 3\].*at least one sample"),
        ((torch.ones(2, 3, device="meta"),), "Input 0 is a meta tensor"),
        ((torch.ones(2, 3, dtype=torch.int64),), r"gets torch.int64, its weight is torch.float32.*\.to"),
        ((torch.ones(2, 3, dtype=torch.float64),), r"gets torch.float64|cannot capture"),
        ([X], "example inputs are a list"),
        ((torch.ones(2, 4),), "cannot capture Linear"),
        ((X, X), "cannot capture Linear"),
    ],
)
def test_inputs(args: tuple[object, ...], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        capture(nn.Linear(3, 3).eval(), args, {})


def test_devices_that_differ() -> None:
    class Elsewhere(torch.Tensor):
        """A tensor that says it is on another device."""

        device = torch.device("cuda:0")

    with pytest.raises(UnsupportedError, match=r"input 0 is on cuda:0, parameter 'weight' on cpu.*\.to\(device\)"):
        capture(nn.Linear(3, 3).eval(), (torch.ones(2, 3).as_subclass(Elsewhere),), {})


@pytest.mark.parametrize("training", [True, False])
def test_dropout_by_function(training: bool) -> None:
    model = Function(lambda _m, x: F.dropout(x, 0.5, training)).eval()
    if not training:
        capture(model, (X,), {})
        return
    with pytest.raises(UnsupportedError, match="gives another result at every call"):
        capture(model, (X,), {})


def test_program_exported_in_training_mode() -> None:
    program = export(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train(), (X,))
    with pytest.raises(UnsupportedError, match=r"changes '1.running_mean'.*model.eval\(\)"):
        capture(program, (X,), {})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.ones(2, 4),), r"Input 0 is torch.float32 \[2, 4\]"),
        ((torch.ones(2, 3, 1),), r"Input 0 is torch.float32 \[2, 3, 1\]"),
        ((torch.ones(2, 3, dtype=torch.float64),), r"Input 0 is torch.float64"),
        ((X, X), "structure"),
    ],
)
def test_inputs_that_do_not_fit_a_program(args: tuple[torch.Tensor, ...], message: str) -> None:
    program = export(nn.Linear(3, 3).eval(), (X,), dynamic_shapes=({0: Dim("batch")},))
    with pytest.raises(UnsupportedError, match=message):
        capture(program, args, {})
