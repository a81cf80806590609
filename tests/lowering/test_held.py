"""Views of what kernels compute are made once; copies, and views of anything else, at every call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

from fxprune.lowering import held
from fxprune.lowering.chain import HeldModule
from tests.compiling import check, draw_masks, everything, force_kernels
from tests.networks import Function


def _lower(monkeypatch: pytest.MonkeyPatch, function: Callable[..., object]) -> tuple[list[torch.Tensor], list[str]]:
    """Compile and compare; returns the views that are held, and names of the operators that torch runs."""
    lowered: list[fx.GraphModule] = []

    def hold(gm: fx.GraphModule) -> None:
        held.hold_views(gm)
        lowered.append(gm)

    monkeypatch.setattr("fxprune.lowering.program.hold_views", hold)
    force_kernels(monkeypatch, "rows")
    model = Function(function, a=nn.Linear(48, 64), b=nn.Linear(48, 64)).eval()
    check(model, draw_masks(model, everything), torch.randn(2, 6, 48))
    gm = lowered[-1]
    modules = [gm.get_submodule(str(node.target)) for node in gm.graph.nodes if node.op == "call_module"]
    operators = [str(node.target) for node in gm.graph.nodes if node.op == "call_function"]
    return [module.output for module in modules if isinstance(module, HeldModule)], operators


def test_a_view_and_a_view_of_it_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    views, operators = _lower(
        monkeypatch, lambda m, x: (heads := m.a(x).view(2, 6, 4, 16).transpose(1, 2)).tanh() + heads[:, :, :1].sigmoid()
    )
    assert sorted(tuple(view.shape) for view in views) == [(2, 4, 1, 16), (2, 4, 6, 16)]
    assert operators == ["aten.tanh.default", "aten.sigmoid.default", "aten.add.Tensor"]


def test_both_of_two_kernels_results_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    views, operators = _lower(monkeypatch, lambda m, x: m.a(x).transpose(0, 1).tanh() * m.b(x).transpose(0, 1))
    assert len(views) >= 2
    assert operators == ["aten.tanh.default", "aten.mul.Tensor"]


def test_what_copies_runs_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    views, operators = _lower(monkeypatch, lambda m, x: m.a(x).transpose(0, 1).reshape(12, 64).tanh())
    assert [tuple(view.shape) for view in views] == [(6, 2, 64)]
    assert operators == ["aten.reshape.default", "aten.tanh.default"]


def test_views_of_inputs_are_made_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    _, operators = _lower(monkeypatch, lambda m, x: m.a(x) + x.transpose(0, 1).tanh().sum())
    assert "aten.transpose.int" in operators


def test_a_held_view_that_is_returned_is_the_callers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    force_kernels(monkeypatch, "rows")
    model = Function(lambda m, x: m.a(x).transpose(0, 1), a=nn.Linear(48, 64)).eval()
    compiled = check(model, draw_masks(model, everything), torch.randn(2, 6, 48))
    first = compiled(torch.ones(2, 6, 48))
    before = first.clone()
    compiled(torch.zeros(2, 6, 48))
    assert torch.equal(first, before)
