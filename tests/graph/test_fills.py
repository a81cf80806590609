"""Tensors that take only their shape from the input become constants."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fxprune.graph import capture
from tests.networks import Function, difference, image, reference, run, targets

_aten = torch.ops.aten

FILLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "new_zeros": lambda x: x.new_zeros((1, 4)) + 1,
    "new_ones": lambda x: x.new_ones((1, 4)),
    "new_full": lambda x: x.new_full((1, 4), 0.5),
    "zeros_like": lambda x: torch.zeros_like(x).cos(),
    "ones_like": torch.ones_like,
    "full_like": lambda x: torch.full_like(x, -2),
    "fill": lambda x: x.clone().fill_(3.0),
    "int": lambda x: torch.zeros_like(x, dtype=torch.int64) + 1,
}


@pytest.mark.parametrize("name", list(FILLS))
def test_a_fill_reads_nothing(name: str) -> None:
    model = Function(lambda m, x: m.fc(x) * FILLS[name](x), fc=nn.Linear(4, 4)).double().eval()
    x = image(3, 4)
    gm = capture(model, (x,), {}).graph_module
    assert targets(gm) == [_aten.linear.default, _aten.mul.Tensor]
    assert difference(run(gm, x)[0], reference(model, x)) == 0


def test_a_mask_built_in_forward_is_one_constant() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        mask = x.new_zeros((4, 4))
        for number, part in enumerate((slice(0, 2), slice(2, 4))):
            mask[part] = number
        scores = x[:, :, None] - x[:, None] + mask.masked_fill(mask != 0, -100.0)
        result: torch.Tensor = m.get_submodule("fc")(scores.softmax(-1))
        return result

    model = Function(forward, fc=nn.Linear(4, 4)).double().eval()
    x = image(3, 4)
    gm = capture(model, (x,), {}).graph_module
    assert _aten.fill.Scalar not in targets(gm)
    assert _aten.slice_scatter.default not in targets(gm)
    assert difference(run(gm, x)[0], reference(model, x)) < 1e-12


def test_other_tensors_of_the_shape_are_left_alone() -> None:
    model = Function(lambda m, x: m.fc(x).fill_(2.0) + x, fc=nn.Linear(4, 4)).double().eval()
    x = image(3, 4)
    gm = capture(model, (x,), {}).graph_module
    assert targets(gm) == [_aten.add.Tensor]
    assert difference(run(gm, x)[0], reference(model, x)) == 0


def test_long_constant_arithmetic_is_recognised_in_time() -> None:
    """Each step reads the one before twice: written out, the last would be a text of 2 ** 60 parts."""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        mask = x.new_ones((4,))
        for _ in range(60):
            mask = (mask + mask) * 0.5
        result: torch.Tensor = m.get_submodule("fc")(x) * mask
        return result

    gm = capture(Function(forward, fc=nn.Linear(4, 4)).double().eval(), (image(3, 4),), {}).graph_module
    assert targets(gm) == [_aten.linear.default, _aten.mul.Tensor]
