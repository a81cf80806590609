"""Products with plain parameters: cut as linear layers are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

from tests.channels.toys import GATE, WRONG, eliminate, error_of, kept_shapes
from tests.networks import Function, double, image


class Plain(nn.Module):
    """Linear, a product with the parameter `w` (and `v`), linear."""

    def __init__(self, multiply: Callable[[Plain, torch.Tensor], torch.Tensor], *shape: int, ends: int = 5) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6)
        self.w = nn.Parameter(torch.randn(*shape))
        self.v = nn.Parameter(torch.randn(shape[-1]))
        self.b = nn.Linear(ends, 3)
        self.multiply = multiply

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the three."""
        result: torch.Tensor = self.b(self.multiply(self, self.a(x)))
        return result


FORMS: dict[str, tuple[Callable[[Plain, torch.Tensor], torch.Tensor], tuple[int, ...]]] = {
    "matmul": (lambda m, x: x @ m.w, (6, 5)),
    "matmul with a bias": (lambda m, x: x @ m.w + m.v, (6, 5)),
    "mm": (lambda m, x: torch.mm(x.flatten(0, 1), m.w), (6, 5)),
    "addmm": (lambda m, x: torch.addmm(m.v, x.flatten(0, 1), m.w), (6, 5)),
    "einsum": (lambda m, x: torch.einsum("btk,ko->bto", x, m.w), (6, 5)),
    "constant on the left": (lambda m, x: (m.w.mT @ x.mT).mT, (6, 5)),
    "bmm": (lambda m, x: torch.bmm(x, m.w), (2, 6, 5)),
}


def mask_of(shape: tuple[int, ...], axis: int, dead: list[int]) -> torch.Tensor:
    """Return a mask that is False at some indices of an axis."""
    mask = torch.ones(shape, dtype=torch.bool)
    mask.index_fill_(axis, torch.tensor(dead), value=False)
    return mask


def size_of(gm: fx.GraphModule) -> list[int]:
    """Return the last two sizes of the parameter as it is now, the larger first."""
    (tensor,) = (tensor for name, tensor in gm.named_buffers() if not name.startswith(("a.", "b.")) and tensor.ndim > 1)
    return sorted(tensor.shape[-2:], reverse=True)


@pytest.mark.parametrize("name", list(FORMS))
def test_dead_rows_before_a_product_fold_into_it(name: str) -> None:
    multiply, shape = FORMS[name]
    model = double(Plain(multiply, *shape))
    x = image(2, 7, 4)
    gm, record, error = eliminate(model, {"a.weight": mask_of((6, 4), 0, [1])}, (x,))
    assert error <= GATE
    assert kept_shapes(gm)["a"] == (5, 4)
    assert record.macs_after < record.macs_before
    with torch.no_grad():
        expected = model(x)
        model.get_parameter("a.bias")[1] = 0
        assert error_of(model(x), expected) > WRONG


@pytest.mark.parametrize("name", list(FORMS))
def test_zero_rows_and_columns_of_the_parameter(name: str) -> None:
    multiply, shape = FORMS[name]
    model = double(Plain(multiply, *shape))
    mask = mask_of(shape, -2, [0, 3]) & mask_of(shape, -1, [2])
    gm, _, error = eliminate(model, {"w": mask}, (image(2, 7, 4),))
    assert error <= GATE
    assert kept_shapes(gm) == {"a": (4, 4), "b": (3, 4)}
    assert size_of(gm) == [4, 4]


@pytest.mark.parametrize("name", list(FORMS))
def test_results_that_nobody_reads(name: str) -> None:
    multiply, shape = FORMS[name]
    model = double(Plain(multiply, *shape))
    gm, _, error = eliminate(model, {"b.weight": mask_of((3, 5), 1, [0, 1])}, (image(2, 7, 4),))
    assert error <= GATE
    assert kept_shapes(gm) == {"a": (6, 4), "b": (3, 3)}
    assert size_of(gm) == [6, 3]


def test_unstructured_masks() -> None:
    model = double(Plain(lambda m, x: torch.relu(x @ m.w), 6, 5))
    masks = {"w": torch.rand(6, 5) < 0.2, "a.weight": torch.rand(6, 4) < 0.3}
    assert eliminate(model, masks, (image(2, 7, 4),))[2] <= GATE


def test_channels_of_an_axis_that_is_not_summed_pass() -> None:
    layers = {"a": nn.Conv2d(3, 6, 3), "b": nn.Conv2d(6, 4, 1)}
    model = double(Function(lambda m, x: m.b(m.a(x) @ m.w), **layers))
    model.register_parameter("w", nn.Parameter(torch.randn(6, 6, dtype=torch.float64)))
    gm, _, error = eliminate(model, {"b.weight": mask_of((4, 6, 1, 1), 1, [1, 4])}, (image(2, 3, 8, 8),))
    assert error <= GATE
    assert kept_shapes(gm) == {"a": (4, 3), "b": (4, 4)}


def test_a_parameter_that_is_not_finite_keeps_everything() -> None:
    model = double(Plain(lambda m, x: (x @ m.w).nan_to_num(0.0, 0.0, 0.0), 6, 5))
    with torch.no_grad():
        model.get_parameter("w")[0, 0] = torch.inf
    gm, record, error = eliminate(model, {"a.weight": mask_of((6, 4), 0, [1])}, (image(2, 7, 4),))
    assert error <= GATE
    assert kept_shapes(gm)["a"] == (6, 4)
    assert any("reads all channels" in refusal.reason for refusal in record.refusals)
