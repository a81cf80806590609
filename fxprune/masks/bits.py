"""Masks at one bit a cell, for keeping them as long as a compiled model lives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class _Bits:
    """One mask.

    Attributes:
        shape: Its shape.
        bits: Its cells, eight to a byte, the last byte filled up.
    """

    shape: tuple[int, ...]
    bits: NDArray[np.uint8]

    def unpack(self) -> Tensor:
        cells = int(np.prod(self.shape, dtype=np.int64))
        return torch.from_numpy(np.unpackbits(self.bits, count=cells).astype(np.bool_)).reshape(self.shape)


class MaskBits:
    """Masks by parameter name; what goes in and what comes out share no memory with it."""

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        """Pack.

        Args:
            masks: Bool masks on the CPU by parameter name.
        """
        self._masks = {name: _Bits(tuple(mask.shape), np.packbits(mask.numpy())) for name, mask in masks.items()}

    def unpack(self) -> dict[str, Tensor]:
        """Return the masks as new bool tensors."""
        return {name: mask.unpack() for name, mask in self._masks.items()}

    @property
    def size_bytes(self) -> int:
        """Bytes of all masks."""
        return sum(mask.bits.nbytes for mask in self._masks.values())
