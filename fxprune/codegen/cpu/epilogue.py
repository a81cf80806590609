"""Activations as TIR statements, applied to accumulators before they are stored.

The exponential is a polynomial (Cephes `expf`: Cody-Waite reduction, degree 5, 2 units in the last place), because a
call of the C library would leave the vector registers for every lane. The error function is Abramowitz and Stegun
7.1.26, absolute error below 1.5e-7. In every minimum and maximum the constant comes first: TVM compares with `<` and
takes the second operand where the comparison fails, so NaN stays NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fxprune.errors import CodegenError

TEMPORARIES = ("t0", "t1", "t2", "t3")
"""Names of the local buffers, one vector each, that the statements use."""

_EXP_LIMIT = 87.0
"""exp(+-87) is the last power inside float32's normal range."""


def _constant(value: float) -> str:
    return f"T.float32({value!r})"


def _exp(source: str, target: str, power: str) -> list[str]:
    """Return statements for target = exp(source); all three are different cells."""
    limit = _constant(_EXP_LIMIT)
    lines = [
        f"{target} = T.max({_constant(0.0)} - {limit}, T.min({limit}, {source}))",
        f"{power} = T.floor({target} * {_constant(1.44269504088896341)} + {_constant(0.5)})",
        f"{target} = {target} - {power} * {_constant(0.693359375)} + {power} * {_constant(2.12194440e-4)}",
    ]
    poly = _constant(1.9875691500e-4)
    for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        poly = f"({poly} * {target} + {_constant(factor)})"
    scale = f'T.reinterpret("float32", (T.Cast("int32", {power}) + 127) * 8388608)'
    lines.append(f"{target} = ({poly} * {target} * {target} + {target} + {_constant(1.0)}) * {scale}")
    return lines


def _sigmoid(source: str, target: str, cells: Sequence[str]) -> list[str]:
    """Return statements for target = 1 / (1 + exp(-source)); target differs from source."""
    negated, power = cells
    return [
        f"{negated} = {_constant(0.0)} - {source}",
        *_exp(negated, target, power),
        f"{target} = {_constant(1.0)} / ({_constant(1.0)} + {target})",
    ]


def _hardtanh(x: str, low: float, high: float) -> str:
    bounded = x if math.isinf(high) else f"T.min({_constant(high)}, {x})"
    return bounded if math.isinf(low) else f"T.max({_constant(low)}, {bounded})"


def _gelu(x: str, cells: Sequence[str]) -> list[str]:
    """Return statements for x = x * (1 + erf(x / sqrt(2))) / 2."""
    scaled, negated, power, t = cells
    poly = _constant(1.061405429)
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        poly = f"({poly} * {t} + {_constant(factor)})"
    one, zero = _constant(1.0), _constant(0.0)
    return [
        f"{scaled} = {x} * {_constant(0.5**0.5)}",
        f"{negated} = {zero} - {scaled} * {scaled}",
        *_exp(negated, t, power),
        f"{power} = {t}",
        f"{t} = {one} / ({one} + {_constant(0.3275911)} * T.max({scaled}, {zero} - {scaled}))",
        f"{power} = {one} - {poly} * {t} * {power}",
        f"{power} = T.Select({scaled} < {zero}, {zero} - {power}, {power})",
        f"{x} = {_constant(0.5)} * {x} * ({one} + {power})",
    ]


def _gelu_tanh(x: str, cells: Sequence[str]) -> list[str]:
    """Return statements for x = x * sigmoid(1.5957691 * (x + 0.044715 x^3)), which is gelu's tanh form."""
    inner, target, negated, power = cells
    cubic = f"({x} + {_constant(0.044715)} * {x} * {x} * {x})"
    return [
        f"{inner} = {_constant(1.5957691216057308)} * {cubic}",
        *_sigmoid(inner, target, (negated, power)),
        f"{x} = {x} * {target}",
    ]


def activation_statements(x: str, name: str | None, args: Sequence[float], lane: str) -> list[str]:
    """Return TIR statements that replace the cell `x` by activation(x).

    Args:
        x: TIR text of a float32 cell.
        name: Activation as in `fxprune.operators`, or None.
        args: Its numbers.
        lane: TIR text of the index into the temporaries.

    Raises:
        CodegenError: The activation has no statements here.
    """
    cells = [f"{buffer}[{lane}]" for buffer in TEMPORARIES]
    table: dict[str | None, Callable[[], list[str]]] = {
        None: list,
        "relu": lambda: [f"{x} = T.max({_constant(0.0)}, {x})"],
        "hardtanh": lambda: [f"{x} = {_hardtanh(x, args[0], args[1])}"],
        "sigmoid": lambda: [*_sigmoid(x, cells[0], cells[1:3]), f"{x} = {cells[0]}"],
        "silu": lambda: [*_sigmoid(x, cells[0], cells[1:3]), f"{x} = {x} * {cells[0]}"],
        "hardswish": lambda: [f"{x} = {x} * {_hardtanh(f'({x} + {_constant(3.0)})', 0.0, 6.0)} * {_constant(1 / 6)}"],
        "gelu": lambda: _gelu(x, cells),
        "gelu_tanh": lambda: _gelu_tanh(x, cells),
    }
    if name not in table:
        known = sorted(key for key in table if key)
        raise CodegenError(f"Activation {name!r} has no kernel statements; the kernels know {known}.")
    return table[name]()
