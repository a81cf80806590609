"""Pointwise operators beyond the usual activations: rarer functions, comparisons, logic, fused arithmetic."""

from __future__ import annotations

import torch

_aten = torch.ops.aten

_FUNCTIONS = (
    _aten.expm1.default,
    _aten.exp2.default,
    _aten.log1p.default,
    _aten.log2.default,
    _aten.log10.default,
    _aten.tan.default,
    _aten.sinh.default,
    _aten.cosh.default,
    _aten.asin.default,
    _aten.acos.default,
    _aten.atan.default,
    _aten.erfc.default,
    _aten.logit.default,
    _aten.sign.default,
    _aten.floor.default,
    _aten.ceil.default,
    _aten.round.default,
    _aten.trunc.default,
    _aten.frac.default,
    _aten.nan_to_num.default,
    _aten.threshold.default,
    _aten.hardshrink.default,
    _aten.softshrink.default,
)
_ARITHMETIC = (
    _aten.addcmul.default,
    _aten.addcdiv.default,
    _aten.lerp.Scalar,
    _aten.lerp.Tensor,
    _aten.pow.Tensor_Tensor,
    _aten.pow.Scalar,
    _aten.atan2.default,
    _aten.fmod.Scalar,
    _aten.fmod.Tensor,
    _aten.remainder.Scalar,
    _aten.remainder.Tensor,
    _aten.clamp.Tensor,
    _aten.clamp_min.Tensor,
    _aten.clamp_max.Tensor,
)
_CHOICES = (
    _aten.masked_fill.Scalar,
    _aten.where.Scalar,
    _aten.where.ScalarSelf,
    _aten.where.ScalarOther,
)
_COMPARISONS = (
    *(getattr(_aten, name).Scalar for name in ("gt", "ge", "lt", "le", "eq", "ne")),
    *(getattr(_aten, name).Tensor for name in ("gt", "ge", "lt", "le", "eq", "ne")),
)
_LOGIC = (
    _aten.logical_not.default,
    _aten.logical_and.default,
    _aten.logical_or.default,
    _aten.logical_xor.default,
    _aten.bitwise_not.default,
    _aten.bitwise_and.Tensor,
    _aten.bitwise_or.Tensor,
    _aten.bitwise_xor.Tensor,
    _aten.__and__.Tensor,
    _aten.__or__.Tensor,
    _aten.isnan.default,
)

POINTWISE_EXTRAS = (*_FUNCTIONS, *_ARITHMETIC, *_CHOICES, *_COMPARISONS, *_LOGIC)
"""Operators whose result at a place depends on the operands at that place."""
