"""What torch's own operators on a GPU compute float32 with while a program runs.

By default cuDNN's convolutions use TF32, and a program that promises strict float32 has dense layers, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from fxprune.codegen.cuda.target import Precision


class _Place(Protocol):
    fp32_precision: str


_PLACES: tuple[_Place, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)  # type: ignore[attr-defined, assignment]
"""Where torch keeps it: products of matrices, convolutions, recurrent layers."""


@contextmanager
def float32_precision(precision: Precision) -> Iterator[None]:
    """Let torch compute float32 so, and as before afterwards. The setting is the whole process's.

    Args:
        precision: "ieee" or "tf32".
    """
    before = [place.fp32_precision for place in _PLACES]
    try:
        for place in _PLACES:
            place.fp32_precision = precision
        yield
    finally:
        for place, value in zip(_PLACES, before, strict=True):
            place.fp32_precision = value
