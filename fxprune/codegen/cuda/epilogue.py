"""Activations as TIR statements on one accumulator, for code that a GPU thread runs.

A comparison with NaN is false, and every statement keeps its argument then: NaN stays NaN, as in torch. The exponential
and the error function are the C library's by name, so no fast approximation takes their place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fxprune.errors import CodegenError


def _constant(value: float) -> str:
    return f"T.float32({value!r})"


_ONE, _ZERO = _constant(1.0), _constant(0.0)


def _call(function: str, x: str) -> str:
    return f'T.call_pure_extern("float32", "{function}", {x})'


def _bounded(x: str, low: float, high: float) -> str:
    """Return x between two bounds; an infinite bound is none."""
    if not math.isinf(low):
        x = f"T.Select({x} < {_constant(low)}, {_constant(low)}, {x})"
    if not math.isinf(high):
        x = f"T.Select({_constant(high)} < {x}, {_constant(high)}, {x})"
    return x


def _sigmoid(x: str) -> str:
    return f"({_ONE} / ({_ONE} + {_call('expf', f'{_ZERO} - {x}')}))"


def _gelu(x: str) -> str:
    return f"{_constant(0.5)} * {x} * ({_ONE} + {_call('erff', f'{x} * {_constant(0.5**0.5)}')})"


def _gelu_tanh(x: str) -> str:
    """Return x * sigmoid(1.5957691 * (x + 0.044715 x^3)), which is gelu's tanh form."""
    cubic = f"{_constant(1.5957691216057308)} * ({x} + {_constant(0.044715)} * {x} * {x} * {x})"
    return f"{x} * {_sigmoid(f'({cubic})')}"


def activation_statements(x: str, name: str | None, args: Sequence[float]) -> list[str]:
    """Return TIR statements that replace the cell `x` by activation(x).

    Args:
        x: TIR text of a float32 cell.
        name: Activation as in `fxprune.operators`, or None.
        args: Its numbers.

    Raises:
        CodegenError: The activation has no statements here.
    """
    table: dict[str | None, Callable[[], str]] = {
        "relu": lambda: _bounded(x, 0.0, math.inf),
        "hardtanh": lambda: _bounded(x, args[0], args[1]),
        "sigmoid": lambda: _sigmoid(x),
        "silu": lambda: f"{x} * {_sigmoid(x)}",
        "hardswish": lambda: f"{x} * {_bounded(f'({x} + {_constant(3.0)})', 0.0, 6.0)} * {_constant(1 / 6)}",
        "gelu": lambda: _gelu(x),
        "gelu_tanh": lambda: _gelu_tanh(x),
    }
    if name is None:
        return []
    if name not in table:
        known = sorted(key for key in table if key)
        raise CodegenError(f"Activation {name!r} has no kernel statements; the kernels know {known}.")
    return [f"{x} = {table[name]()}"]
