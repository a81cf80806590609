"""Toys: chains, depthwise, grouped and transposed convolutions, padding."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.channels.toys import GATE, WRONG, Toy, check_toy, eliminate, error_of
from tests.networks import Function, double, image


def chain(m: nn.Module, x: torch.Tensor) -> object:
    """Run `a`, relu, `b`."""
    return m.get_submodule("b")(m.get_submodule("a")(x).relu())


def conv(inputs: int, outputs: int, size: int = 3, **options: int | str) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, **options)  # type: ignore[arg-type]  # as nn.Conv2d takes them


def pair(first: nn.Module, second: nn.Module) -> dict[str, nn.Module]:
    return {"a": first, "b": second}


TOYS: dict[str, Toy] = {
    "06 depthwise fed by two convolutions": Toy(
        lambda m, x: m.d(m.a(x) + m.b(x)),
        lambda: {**pair(conv(3, 6), conv(3, 6)), "d": conv(6, 6, groups=6, padding=1)},
        rows={"a": [1, 2], "b": [1, 4]},
    ),
    "07 depth multiplier": Toy(
        lambda m, x: m.b(m.d(m.a(x)).relu()),
        lambda: {**pair(conv(3, 4), conv(8, 2, 1)), "d": conv(4, 8, groups=4)},
        rows={"a": [1]},
        kept={"a": (3, 3), "d": (6, 1), "b": (2, 6)},
    ),
    "07 depth multiplier, one row of two dead": Toy(
        lambda m, x: m.b(m.d(m.a(x)).relu()),
        lambda: {**pair(conv(3, 4), conv(8, 2, 1)), "d": conv(4, 8, groups=4)},
        rows={"d": [2]},
    ),
    "08 expand, depthwise, project": Toy(
        lambda m, x: m.b(F.relu6(m.nd(m.d(F.relu6(m.na(m.a(x))))))),
        lambda: {
            **pair(conv(3, 12, 1), conv(12, 4, 1)),
            "na": nn.BatchNorm2d(12),
            "d": conv(12, 12, groups=12, padding=1),
            "nd": nn.BatchNorm2d(12),
        },
        rows={"a": [0, 3, 4, 7], "d": [1, 3]},
        kept={"a": (7, 3), "d": (7, 1), "b": (4, 7)},
    ),
    "09 grouped, uneven rows": Toy(
        chain,
        lambda: pair(conv(6, 8, groups=2), conv(8, 4, 1)),
        shapes=((2, 6, 7, 6),),
        rows={"a": [0, 1, 5]},
        kept={"a": (6, 3)},
    ),
    "09 grouped, uneven inputs": Toy(
        chain,
        lambda: pair(conv(3, 8), conv(8, 6, groups=2, padding=1)),
        rows={"a": [0, 1, 5]},
        zeros={"a.bias": [0, 1, 5]},
        kept={"a": (6, 3), "b": (6, 3)},
    ),
    "09 grouped, uneven inputs, one carrier for each group": Toy(
        chain,
        lambda: pair(conv(3, 12), conv(12, 6, groups=2, padding=1)),
        rows={"a": [0, 1, 2, 3, 6, 7, 8]},
    ),
    "10 transposed with groups": Toy(
        chain,
        lambda: pair(conv(3, 8), nn.ConvTranspose2d(8, 4, 3, groups=2, stride=2)),
        rows={"a": [0, 1, 4, 5]},
    ),
    "10 transposed between": Toy(
        lambda m, x: m.c(m.b(m.a(x).relu()).relu()),
        lambda: {**pair(conv(3, 8), nn.ConvTranspose2d(8, 5, 3, stride=2, padding=1)), "c": conv(5, 2)},
        rows={"a": [0, 1], "b": [2, 3]},
    ),
    "11 one axis": Toy(
        chain,
        lambda: pair(nn.Conv1d(3, 6, 3, padding=1), nn.Conv1d(6, 4, 3)),
        shapes=((2, 3, 9),),
        rows={"a": [1, 2]},
        kept={"a": (4, 3), "b": (4, 4)},
    ),
    "11 three axes": Toy(
        chain,
        lambda: pair(nn.Conv3d(2, 6, 3, padding=1), nn.Conv3d(6, 4, 3)),
        shapes=((2, 2, 4, 5, 6),),
        rows={"a": [1, 2]},
        kept={"a": (4, 2), "b": (4, 4)},
    ),
    "12 one output, one group": Toy(chain, lambda: pair(conv(3, 4), conv(4, 1)), rows={"a": [0]}, kept={"b": (1, 3)}),
    "14 dead filter, then sigmoid": Toy(
        lambda m, x: m.b(m.a(x).sigmoid()),
        lambda: pair(conv(3, 4), conv(4, 2)),
        rows={"a": [0, 2]},
        kept={"a": (2, 3), "b": (2, 2)},
    ),
    "18 padded with a constant": Toy(
        lambda m, x: m.b(F.pad(m.a(x).sigmoid(), (1, 0, 2, 1), value=0.7)),
        lambda: pair(conv(3, 4), conv(4, 2)),
        rows={"a": [0, 2]},
    ),
    "19 reflected": Toy(
        lambda m, x: m.b(F.pad(m.a(x).sigmoid(), (1, 1, 1, 1), mode="reflect")),
        lambda: pair(conv(3, 4), conv(4, 2)),
        rows={"a": [0, 2]},
        kept={"a": (2, 3), "b": (2, 2)},
    ),
    "19 replicated": Toy(
        lambda m, x: m.b(F.pad(m.a(x).sigmoid(), (1, 1, 1, 1), mode="replicate")),
        lambda: pair(conv(3, 4), conv(4, 2)),
        rows={"a": [0, 2]},
        kept={"a": (2, 3), "b": (2, 2)},
    ),
    "19 circular": Toy(
        lambda m, x: m.b(m.a(x).sigmoid()),
        lambda: pair(conv(3, 4), nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular")),
        rows={"a": [0, 2]},
    ),
    "20 same padding, even kernel": Toy(
        lambda m, x: m.b(m.a(x).sigmoid()),
        lambda: pair(conv(3, 4), conv(4, 2, 4, padding="same")),
        rows={"a": [0, 2]},
    ),
    **{
        f"21 padded consumer, {height}x{width}, stride {stride}, dilation {dilation}": Toy(
            lambda m, x: m.b(m.a(x).sigmoid()),
            lambda stride=stride, dilation=dilation: pair(  # type: ignore[misc]  # bound here
                conv(3, 5, 1), conv(5, 3, 3, padding=2, stride=stride, dilation=dilation)
            ),
            shapes=((2, 3, height, width),),
            rows={"a": [0, 1, 2]},
            kept={"a": (3, 3), "b": (3, 3)},  # two live, one carrier
        )
        for height, width in ((9, 8), (4, 5))
        for stride in (1, 2)
        for dilation in (1, 2)
    },
}
"""Number in channels.md, section 15, with a name; and the toy."""


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", TOYS)
def test_toy(name: str) -> None:
    check_toy(TOYS[name])


def test_13_filter_with_zero_sum_is_not_dead() -> None:
    model, x = double(nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2))), image(2, 3, 7, 6)
    weight = model.get_parameter("0.weight").data
    weight[1] -= weight[1].mean()
    _, record, error = eliminate(model, {}, (x,))
    assert error <= GATE
    assert record.macs_after == record.macs_before
    assert abs(float(weight[1].sum())) < 1e-12
    with torch.no_grad():
        expected = model(x)
        weight[1] = 0
        assert error_of(model(x), expected) > WRONG


def masked_chain(second: nn.Module, function: nn.Module) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a network with a dead first row, an image, and the mask."""
    model = double(nn.Sequential(conv(3, 4), function, second))
    mask = torch.ones(4, 3, 3, 3, dtype=torch.bool)
    mask[0] = False
    model.get_parameter("0.bias").data[0] = 0.5
    return model, image(2, 3, 7, 6), mask


def test_dead_filter_with_its_shift_dropped_is_wrong() -> None:
    model, x, mask = masked_chain(conv(4, 2), nn.ReLU())
    *_, error = eliminate(model, {"0.weight": mask}, (x,))
    assert error <= GATE
    with torch.no_grad():
        expected = model(x)
        model.get_parameter("0.bias")[0] = 0
        assert error_of(model(x), expected) > WRONG


def test_dead_filter_before_sigmoid_taken_for_zero_is_wrong() -> None:
    model, x, mask = masked_chain(conv(4, 2), nn.Sigmoid())
    *_, error = eliminate(model, {"0.weight": mask}, (x,))
    assert error <= GATE
    with torch.no_grad():
        expected = model(x)
        model.get_parameter("2.weight")[:, 0] = 0
        assert error_of(model(x), expected) > WRONG


@pytest.mark.parametrize("consumer", [conv(4, 2, padding=1), nn.ConvTranspose2d(4, 2, 3, stride=2)])
def test_scalar_fold_into_a_padded_or_transposed_consumer_is_wrong(consumer: nn.Module) -> None:
    model, x, mask = masked_chain(consumer, nn.ReLU())
    *_, error = eliminate(model, {"0.weight": mask}, (x,))
    assert error <= GATE
    with torch.no_grad():
        expected = model(x)
        axis = int(isinstance(consumer, nn.Conv2d))
        column = model.get_parameter("2.weight").select(axis, 0)
        model.get_parameter("2.bias").add_(0.5 * column.sum((1, 2)))
        column.zero_()
        assert error_of(model(x), expected) > WRONG


def test_59_weight_that_is_not_finite_is_refused_at_the_door() -> None:
    model = Function(chain, a=conv(3, 4), b=conv(4, 2)).double().eval()
    model.get_parameter("a.weight").data[0, 0, 0, 0] = float("nan")
    with pytest.raises(Exception, match="finite"):
        eliminate(model, {}, (image(2, 3, 7, 6),))
