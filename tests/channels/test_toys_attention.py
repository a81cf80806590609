"""Toys: attention in the ways that models write it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Unpack

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.channels.toys import GATE, WRONG, Masked, Toy, check_toy, eliminate, error_of
from tests.networks import Function, double, image

WIDTH, HEADS = 12, 3
DIM = WIDTH // HEADS


def projections(width: int = WIDTH, keys: int = WIDTH) -> dict[str, nn.Module]:
    """Return the four projections."""
    return {
        "q": nn.Linear(8, width),
        "k": nn.Linear(8, keys),
        "v": nn.Linear(8, keys),
        "o": nn.Linear(width, 8),
    }


def heads(x: torch.Tensor, count: int = HEADS) -> torch.Tensor:
    """Return [N, heads, tokens, dim]."""
    batch, tokens, width = x.shape
    return x.view(batch, tokens, count, width // count).transpose(1, 2)


def join(x: torch.Tensor) -> torch.Tensor:
    """Return [N, tokens, heads * dim]."""
    return x.transpose(1, 2).flatten(2)


def by_products(m: nn.Module, x: torch.Tensor) -> object:
    """Attend by matmul, softmax, matmul with the scale written out."""
    q, k, v = (heads(m.get_submodule(name)(x)) for name in "qkv")
    weights = (q @ k.transpose(-1, -2) / math.sqrt(DIM)).softmax(-1)
    return m.get_submodule("o")(join(weights @ v))


def by_one_call(m: nn.Module, x: torch.Tensor) -> object:
    """Attend by scaled_dot_product_attention, without a scale."""
    q, k, v = (heads(m.get_submodule(name)(x)) for name in "qkv")
    return m.get_submodule("o")(join(F.scaled_dot_product_attention(q, k, v)))


def crossed(m: nn.Module, x: torch.Tensor, y: torch.Tensor) -> object:
    """Attend to other tokens."""
    q, k, v = heads(m.get_submodule("q")(x)), heads(m.get_submodule("k")(y)), heads(m.get_submodule("v")(y))
    return m.get_submodule("o")(join(F.scaled_dot_product_attention(q, k, v)))


def packed(m: nn.Module, x: torch.Tensor) -> object:
    """Attend with one projection for all three."""
    q, k, v = m.get_submodule("p")(x).reshape(2, 5, 3, HEADS, DIM).permute(2, 0, 3, 1, 4).unbind(0)
    return m.get_submodule("o")(join(F.scaled_dot_product_attention(q, k, v)))


def grouped(m: nn.Module, x: torch.Tensor) -> object:
    """Attend with four query heads on two key heads."""
    q, k, v = heads(m.get_submodule("q")(x), 4), heads(m.get_submodule("k")(x), 2), heads(m.get_submodule("v")(x), 2)
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    return m.get_submodule("o")(join(F.scaled_dot_product_attention(q, k, v)))


def grouped_by_flag(m: nn.Module, x: torch.Tensor) -> object:
    """Attend with four query heads on two key heads, as one call."""
    q, k, v = heads(m.get_submodule("q")(x), 4), heads(m.get_submodule("k")(x), 2), heads(m.get_submodule("v")(x), 2)
    return m.get_submodule("o")(join(F.scaled_dot_product_attention(q, k, v, enable_gqa=True)))


def turn(x: torch.Tensor) -> torch.Tensor:
    """Turn pairs (j, j + d/2) by an angle that depends on the token."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] / 10.0 ** torch.arange(half, dtype=x.dtype)
    cosine, sine = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    return x * cosine + torch.cat([-x[..., half:], x[..., :half]], -1) * sine


def rotary(m: nn.Module, x: torch.Tensor) -> object:
    """Attend with rotary position embedding."""
    q, k, v = (heads(m.get_submodule(name)(x)) for name in "qkv")
    return m.get_submodule("o")(join(F.scaled_dot_product_attention(turn(q), turn(k), v)))


def cosine(m: nn.Module, x: torch.Tensor) -> object:
    """Attend by the cosine of queries and keys, as Swin v2."""
    q, k, v = (heads(m.get_submodule(name)(x)) for name in "qkv")
    weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2) * 7.0).softmax(-1)
    return m.get_submodule("o")(join(weights @ v))


def masked(m: nn.Module, x: torch.Tensor) -> object:
    """Attend under a mask that leaves the last token nothing."""
    q, k, v = (heads(m.get_submodule(name)(x)) for name in "qkv")
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()
    allowed[-1] = False
    return m.get_submodule("o")(join(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)))


def causal(m: nn.Module, x: torch.Tensor) -> object:
    """Attend to earlier tokens only."""
    q, k, v = (heads(m.get_submodule(name)(x)) for name in "qkv")
    return m.get_submodule("o")(join(F.scaled_dot_product_attention(q, k, v, is_causal=True)))


def einsum(m: nn.Module, x: torch.Tensor) -> object:
    """Attend by einsum, as MaxViT."""
    q, k, v = (heads(m.get_submodule(name)(x)) for name in "qkv")
    weights = torch.einsum("bhid,bhjd->bhij", q, k * 0.3).softmax(-1)
    return m.get_submodule("o")(join(torch.einsum("bhij,bhjd->bhid", weights, v)))


Forward = Callable[..., object]
SHAPES = ((2, 5, 8),)
FIRST = [0, 4, 8]
"""Dimension 0 of every head."""


def toy(forward: Forward, shapes: tuple[tuple[int, ...], ...] = SHAPES, **masked: Unpack[Masked]) -> Toy:
    """Return a toy with separate projections."""
    return Toy(forward, projections, shapes, **masked)


CASES: dict[str, Masked] = {
    "query and bias zero": {
        "rows": {"q": FIRST},
        "zeros": {"q.bias": FIRST},
        "kept": {"q": (9, 8), "k": (9, 8), "v": (12, 8)},
    },
    "key zero": {
        "rows": {"k": FIRST},
        "zeros": {"k.bias": FIRST},
        "kept": {"q": (9, 8), "k": (9, 8), "v": (12, 8)},
    },
    "key constant": {"rows": {"k": FIRST}, "kept": {"q": (9, 8), "k": (9, 8)}},
    "query constant": {"rows": {"q": FIRST}},
    "value constant": {"rows": {"v": FIRST}, "kept": {"v": (9, 8), "o": (8, 9)}},
    "value unused": {"columns": {"o": FIRST}, "kept": {"v": (9, 8), "o": (8, 9)}},
    "value of other dims in every head": {"rows": {"v": [0, 5, 10]}},
    "a head without queries": {"rows": {"q": [0, 1, 2, 3]}, "zeros": {"q.bias": [0, 1, 2, 3]}},
    "a head without values": {"rows": {"v": [4, 5, 6, 7]}, "kept": {"q": (8, 8), "k": (8, 8), "v": (8, 8)}},
    "a head unused": {"columns": {"o": [4, 5, 6, 7]}, "kept": {"q": (8, 8), "k": (8, 8), "v": (8, 8)}},
    "random rows": {"rows": {"q": [0, 3, 7], "k": [0, 1, 5, 9], "v": [2, 3, 4, 11], "o": [1]}},
}
"""What may be dead in a head."""

TOYS: dict[str, Toy] = {
    **{
        f"54 {forward.__name__}, {name}": toy(forward, **masked_weights)
        for forward in (by_products, by_one_call, causal, einsum)
        for name, masked_weights in CASES.items()
    },
    "54 cross": toy(crossed, shapes=((2, 5, 8), (2, 7, 8)), rows={"q": FIRST, "v": FIRST}, columns={"k": [1]}),
    **{
        f"54 {forward.__name__}": Toy(
            forward,
            lambda: projections(16, 8),
            SHAPES,
            rows={"k": [0, 4], "v": [1, 5], "q": [3, 7]},
            zeros={"k.bias": [0, 4]},
        )
        for forward in (grouped, grouped_by_flag)
    },
    "54 packed": Toy(
        packed,
        lambda: {"p": nn.Linear(8, 3 * WIDTH), "o": nn.Linear(WIDTH, 8)},
        SHAPES,
        rows={"p": [1, 5, 9, *(24 + d for d in FIRST)]},
        zeros={"p.bias": [1, 5, 9]},
    ),
    "54 rotary, a pair zero": toy(rotary, rows={"q": [0, 2]}, zeros={"q.bias": [0, 2]}),
    "54 rotary, a pair constant": toy(rotary, rows={"k": [0, 2, 4, 6]}),
    "54 cosine, query zero": toy(cosine, rows={"q": FIRST}, zeros={"q.bias": FIRST}),
    "54 cosine, both zero": toy(cosine, rows={"q": FIRST, "k": FIRST}, zeros={"q.bias": FIRST, "k.bias": FIRST}),
    "54 cosine, value constant": toy(cosine, rows={"v": FIRST}),
    "54 a row fully masked": toy(masked, rows={"v": FIRST, "k": [1]}),
    "54 module": Toy(
        lambda m, x: m.b(m.a(x, x, x, need_weights=False)[0]),
        lambda: {"a": nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), "b": nn.Linear(WIDTH, 4)},
        shapes=((2, 5, WIDTH),),
        rows={"a.in_proj_weight": [0, 13, 24, 28, 32]},
    ),
    "54 module with weights": Toy(
        lambda m, x: m.b(m.a(x, x, x)[0]),
        lambda: {"a": nn.MultiheadAttention(WIDTH, HEADS), "b": nn.Linear(WIDTH, 4)},
        shapes=((2, 5, WIDTH),),
        rows={"a.in_proj_weight": [0, 13, 24, 28, 32]},
    ),
}
"""Number in channels.md, section 15, with a name; and the toy."""


@pytest.mark.parametrize("name", TOYS)
def test_toy(name: str) -> None:
    check_toy(TOYS[name])


def model_with(forward: Forward, rows: dict[str, list[int]]) -> tuple[nn.Module, torch.Tensor]:
    """Return a network with sharp attention, rows and biases of it zero, and tokens."""
    model, x = double(Function(forward, **projections())), image(*SHAPES[0])
    for name, dead in rows.items():
        model.get_parameter(f"{name}.weight").data[dead] = 0
        model.get_parameter(f"{name}.bias").data[dead] = 0
    for name in "qk":
        model.get_parameter(f"{name}.weight").data.mul_(4)
    return model, x


def exact(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Check that elimination keeps the output; returns the output."""
    *_, error = eliminate(model, {}, (x,))
    assert error <= GATE
    with torch.no_grad():
        found = model(x)
    assert isinstance(found, torch.Tensor)
    return found


def test_scale_derived_from_the_cut_dimension_is_wrong() -> None:
    model, x = model_with(by_one_call, {"q": FIRST})
    expected = exact(model, x)
    with torch.no_grad():
        model.get_parameter("q.weight").mul_(math.sqrt(DIM / (DIM - 1)))
        assert error_of(model(x), expected) > WRONG


def test_head_without_queries_taken_for_dead_is_wrong() -> None:
    model, x = model_with(by_one_call, {"q": [0, 1, 2, 3]})
    expected = exact(model, x)
    with torch.no_grad():
        model.get_parameter("o.weight")[:, :4] = 0
        assert error_of(model(x), expected) > WRONG


def test_constant_query_dropped_is_wrong() -> None:
    model, x = model_with(by_one_call, {"q": FIRST})
    model.get_parameter("q.bias").data[FIRST] = 0.7
    expected = exact(model, x)
    with torch.no_grad():
        model.get_parameter("q.bias")[FIRST] = 0
        assert error_of(model(x), expected) > WRONG


def test_constant_pair_dropped_under_rotation_is_wrong() -> None:
    model, x = model_with(rotary, {"k": [0, 2]})
    model.get_parameter("k.bias").data[[0, 2]] = 0.7
    expected = exact(model, x)
    with torch.no_grad():
        model.get_parameter("k.bias")[[0, 2]] = 0
        assert error_of(model(x), expected) > WRONG


def test_key_dropped_under_a_cosine_is_wrong() -> None:
    model, x = model_with(cosine, {"q": FIRST})
    expected = exact(model, x)
    with torch.no_grad():
        model.get_parameter("k.weight")[FIRST] = 0
        model.get_parameter("k.bias")[FIRST] = 0
        assert error_of(model(x), expected) > WRONG


def test_constant_value_folded_where_a_row_is_masked_is_wrong() -> None:
    model, x = model_with(masked, {"v": FIRST})
    model.get_parameter("v.bias").data[FIRST] = 0.7
    expected = exact(model, x)
    with torch.no_grad():
        column = model.get_parameter("o.weight")[:, FIRST]
        model.get_parameter("o.bias").add_(0.7 * column.sum(1))
        model.get_parameter("o.weight")[:, FIRST] = 0
        assert error_of(model(x), expected) > WRONG
