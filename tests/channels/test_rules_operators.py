"""Rules of single operators: what goes before them, what stays and why; wrong values as twins."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.channels.toys import GATE, WRONG, Toy, check_toy, eliminate, error_of, kept_shapes
from tests.networks import Function, double, image

Operator = Callable[[torch.Tensor], object]


def between(operator: Operator, *, width: int = 6, wide: int | None = None) -> nn.Module:
    """Return a convolution, an operator, and another convolution."""

    def forward(m: nn.Module, x: torch.Tensor) -> object:
        apply = m.get_submodule("n") if isinstance(operator, nn.Module) else operator
        return m.get_submodule("b")(apply(m.get_submodule("a")(x)))

    layers: dict[str, nn.Module] = {"a": nn.Conv2d(3, width, 3), "b": nn.Conv2d(wide or width, 4, 1)}
    if isinstance(operator, nn.Module):
        layers["n"] = operator
    return double(Function(forward, **layers))


def kill(model: nn.Module, rows: list[int], name: str = "a") -> dict[str, torch.Tensor]:
    """Return a mask without some rows of a convolution."""
    mask = torch.ones(model.get_parameter(f"{name}.weight").shape, dtype=torch.bool)
    mask[rows] = False
    return {f"{name}.weight": mask}


PASSING: dict[str, Operator] = {
    "pad constant": lambda x: F.pad(x, (1, 0, 2, 1), value=0.7),
    "pad circular": lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"),
    "pad replicate": lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
    "adaptive max pool": lambda x: F.adaptive_max_pool2d(x, 2),
    "nearest exact": lambda x: F.interpolate(x, size=(7, 7), mode="nearest-exact"),
    "bilinear antialiased": lambda x: F.interpolate(x, size=(3, 3), mode="bilinear", antialias=True),
    "maximum of a row": lambda x: x.max(3, keepdim=True).values,
    "running sum": lambda x: x.cumsum(2),
    "norm of a row": lambda x: torch.linalg.vector_norm(x, dim=3, keepdim=True),
    "log softmax of a row": lambda x: F.log_softmax(x, 3),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x, x.square() + 1, value=0.5),
    "lerp": lambda x: torch.lerp(x, x.sin(), 0.3),
    "masked fill": lambda x: x.masked_fill(x > 0.1, 2.0),
    "comparison and where": lambda x: torch.where((x > 0) & (x < 1), x, -x),
    "threshold": lambda x: F.threshold(x, 0.1, 0.2),
    "softshrink": lambda x: F.softshrink(x, 0.01) + F.hardshrink(x, 0.2) + F.softsign(x),
    "sign, floor, exponentials": lambda x: x.sign() + x.floor() + torch.expm1(x) + torch.log1p(x.square()) + 2**x,
}
KNOWN_AFTER = frozenset(PASSING) - {"running sum", "norm of a row", "pad constant"}
"""Operators behind which a constant is a constant still."""


@pytest.mark.parametrize("name", list(PASSING))
def test_dead_rows_go_before(name: str) -> None:
    model = between(PASSING[name])
    masks = kill(model, [1, 4])
    with torch.no_grad():
        model.get_parameter("a.bias").uniform_(0.5, 1.0)
    x = image(2, 3, 8, 8)
    gm, _, error = eliminate(model, masks, (x,))
    assert error <= GATE
    if name in KNOWN_AFTER:
        assert kept_shapes(gm) == {"a": (4, 3), "b": (4, 4)}
    with torch.no_grad():
        expected = model(x)
        model.get_parameter("a.bias")[[1, 4]] = 0.0  # as if dead channels were 0
        assert (error_of(model(x), expected) > WRONG) == (name != "log softmax of a row")  # -log n, whatever the bias


@pytest.mark.parametrize("name", list(PASSING))
def test_unused_channels_go_before(name: str) -> None:
    model = between(PASSING[name])
    mask = torch.ones(4, 6, 1, 1, dtype=torch.bool)
    mask[:, [0, 5]] = False
    gm, _, error = eliminate(model, {"b.weight": mask}, (image(2, 3, 8, 8),))
    assert error <= GATE
    assert kept_shapes(gm) == {"a": (4, 3), "b": (4, 4)}


@pytest.mark.parametrize("slopes", [1, 6])
def test_prelu_slopes_are_cut(slopes: int) -> None:
    model = between(nn.PReLU(slopes))
    with torch.no_grad():
        model.get_parameter("n.weight").uniform_(-2, 2)
        model.get_parameter("a.bias").uniform_(-2, -1)
    x = image(2, 3, 8, 8)
    gm, _, error = eliminate(model, kill(model, [0, 2]), (x,))
    assert error <= GATE
    assert kept_shapes(gm) == {"a": (4, 3), "b": (4, 4)}
    with torch.no_grad():
        expected = model(x)
        model.get_parameter("n.weight").fill_(1.0)
        assert error_of(model(x), expected) > WRONG


def test_scalar_prelu_on_the_last_axis() -> None:
    layers = {"a": nn.Linear(5, 6), "p": nn.PReLU(), "b": nn.Linear(6, 3)}
    model = double(Function(lambda m, x: m.b(m.p(m.a(x))), **layers))
    gm, _, error = eliminate(model, kill(model, [0, 2]), (image(2, 7, 5),))
    assert error <= GATE
    assert kept_shapes(gm) == {"a": (4, 5), "b": (3, 4)}


NORMS: dict[str, Callable[[], nn.Module]] = {
    "instance": lambda: nn.InstanceNorm2d(6, affine=True),
    "instance, plain": lambda: nn.InstanceNorm2d(6),
    "instance, running statistics": lambda: nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
    "batch, no statistics": lambda: nn.BatchNorm2d(6, track_running_stats=False),
}


@pytest.mark.parametrize("name", list(NORMS))
def test_norms_of_single_channels(name: str) -> None:
    model = between(NORMS[name]())
    norm = model.get_submodule("n")
    if getattr(norm, "weight", None) is not None:
        with torch.no_grad():
            norm.get_parameter("weight").uniform_(0.5, 1.5)[3] = 0.0
            norm.get_parameter("bias").uniform_(0.5, 1.5)
    gm, _, error = eliminate(model, kill(model, [1]), (image(2, 3, 8, 8),))
    assert error <= GATE
    left = 5 if name == "instance, plain" else 4
    assert kept_shapes(gm) == {"a": (left, 3), "b": (4, left)}


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(1, 6), nn.GroupNorm(3, 6), nn.LayerNorm((6, 6, 6)), nn.RMSNorm((6, 6, 6))]
)
def test_shared_statistics_count_channels_that_left(norm: nn.Module) -> None:
    model = between(norm)
    """The rows of dead channels go; what the norm makes of their constants varies, and its readers keep it."""
    gm, _, error = eliminate(model, kill(model, [1, 4]), (image(2, 3, 8, 8),))
    assert error <= GATE
    assert kept_shapes(gm) == {"a": (4, 3), "b": (4, 6)}


def test_where_a_maximum_was_found_is_not_its_value() -> None:
    """A dead channel's plane is constant, but the places at which its maximum is found are not that constant."""
    model = double(Function(lambda m, x: F.max_pool2d(m.a(x), 2, return_indices=True), a=nn.Conv2d(3, 6, 3)))
    error = eliminate(model, kill(model, [1, 4]), (image(2, 3, 8, 8),))[2]
    assert error <= GATE


def test_pixel_shuffle_takes_all_channels_of_a_result() -> None:
    model = between(lambda x: F.pixel_shuffle(x, 2), width=24, wide=6)
    dead = [0, 1, 2, 3, 8, 9, 10, 12]  # channel 0 whole, parts of 2 and 3
    with torch.no_grad():
        model.get_parameter("a.bias")[:4] = 0.4
    gm, _, error = eliminate(model, kill(model, dead), (image(2, 3, 8, 8),))
    assert error <= GATE
    assert kept_shapes(gm) == {"a": (20, 3), "b": (4, 5)}


def test_pixel_shuffle_of_different_constants_varies_over_space() -> None:
    model = between(lambda x: F.pixel_shuffle(x, 2), width=24, wide=6)
    gm, _, error = eliminate(model, kill(model, [0, 1, 2, 3]), (image(2, 3, 8, 8),))
    assert error <= GATE
    assert kept_shapes(gm)["b"] == (4, 6)


def test_pixel_shuffle_unused_result() -> None:
    model = between(lambda x: F.pixel_shuffle(x, 2), width=24, wide=6)
    mask = torch.ones(4, 6, 1, 1, dtype=torch.bool)
    mask[:, [1, 5]] = False
    gm, _, error = eliminate(model, {"b.weight": mask}, (image(2, 3, 8, 8),))
    assert error <= GATE
    assert kept_shapes(gm) == {"a": (16, 3), "b": (4, 4)}


@pytest.mark.parametrize(("dead", "left"), [([0, 6, 1], 10), ([2, 8], 10), ([7], 12)])
def test_glu_halves_stay_equal(dead: list[int], left: int) -> None:
    model = between(lambda x: F.glu(x, 1), width=12, wide=6)
    x = image(2, 3, 8, 8)
    gm, _, error = eliminate(model, kill(model, dead), (x,))
    assert error <= GATE
    assert kept_shapes(gm) == {"a": (left, 3), "b": (4, left // 2)}


def test_glu_with_a_zero_half_needs_no_gate() -> None:
    model = between(lambda x: F.glu(x, 1), width=12, wide=6)
    with torch.no_grad():
        model.get_parameter("a.bias")[[0, 3]] = 0
    gm, _, error = eliminate(model, kill(model, [0, 3]), (image(2, 3, 8, 8),))
    assert error <= GATE
    assert kept_shapes(gm) == {"a": (8, 3), "b": (4, 4)}


COPIES: dict[str, tuple[Operator, int]] = {
    "repeat": (lambda x: x.repeat(1, 3, 1, 1), 18),
    "tile": (lambda x: torch.tile(x, (2, 1, 1)), 12),
    "repeat interleave": (lambda x: x.repeat_interleave(2, 1), 12),
    "repeat over space": (lambda x: x.repeat(1, 1, 2, 1), 6),
}


@pytest.mark.parametrize("name", list(COPIES))
def test_copies_lose_the_channels_of_their_original(name: str) -> None:
    operator, wide = COPIES[name]
    model = between(operator, wide=wide)
    x = image(2, 3, 8, 8)
    gm, _, error = eliminate(model, kill(model, [1, 4]), (x,))
    assert error <= GATE
    assert kept_shapes(gm) == {"a": (4, 3), "b": (4, wide * 4 // 6)}


def test_a_copy_is_used_if_one_of_its_places_is() -> None:
    model = between(lambda x: x.repeat(1, 2, 1, 1), wide=12)
    mask = torch.ones(4, 12, 1, 1, dtype=torch.bool)
    mask[:, [0, 1, 7]] = False
    gm, _, error = eliminate(model, {"b.weight": mask}, (image(2, 3, 8, 8),))
    assert error <= GATE
    assert kept_shapes(gm)["a"] == (5, 3)


READERS: dict[str, Operator] = {
    "argmax": lambda x: x.argmax(1, keepdim=True).double().expand(-1, 6, -1, -1),
    "topk": lambda x: x.topk(6, 1)[0],
    "sort": lambda x: x.sort(1)[0],
    "running sum of channels": lambda x: x.cumsum(1),
    "log softmax of channels": lambda x: F.log_softmax(x, 1),
    "normalised channels": lambda x: F.normalize(x, dim=1),
    "maximum of channels": lambda x: x.max(1, keepdim=True).values.expand(-1, 6, -1, -1),
}


@pytest.mark.parametrize("name", list(READERS))
def test_readers_of_all_channels_keep_them_with_a_reason(name: str) -> None:
    model = between(READERS[name])
    gm, record, error = eliminate(model, kill(model, [1, 4]), (image(2, 3, 8, 8),))
    assert error <= GATE
    assert kept_shapes(gm)["a"] == (6, 3)
    assert any("reads all channels" in refusal.reason or "tied" in refusal.reason for refusal in record.refusals)


def test_toy_with_transposed_constants() -> None:
    layers = {"a": nn.Conv2d(3, 6, 3), "b": nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, groups=2)}
    check_toy(Toy(lambda m, x: m.b(m.a(x)), lambda: layers, rows={"a": [0, 1, 3, 4]}, kept={"a": (4, 3), "b": (4, 2)}))
