"""Masks at one bit a cell: a bool tensor takes eight, and a compiled model holds its masks as long as it lives."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch


def pack_bits(mask: torch.Tensor) -> torch.Tensor:
    """Return the cells of a bool tensor, in order, eight a byte: uint8 [cells / 8, rounded up] on the CPU."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def unpack_bits(bits: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return the bool tensor of a shape from its packed cells."""
    cells = np.unpackbits(bits.numpy(), count=math.prod(shape))
    return torch.from_numpy(cells.view(np.bool_)).reshape(tuple(shape))


class PackedMasks(Mapping[str, torch.Tensor]):
    """Masks by parameter name, kept packed; reading one makes a new bool tensor."""

    def __init__(self, masks: Mapping[str, torch.Tensor]) -> None:
        """Pack.

        Args:
            masks: Bool masks; they are copied, packed ones shared.
        """
        self._packed: Mapping[str, tuple[torch.Tensor, torch.Size, torch.device]] = (
            masks._packed
            if isinstance(masks, PackedMasks)
            else {name: (pack_bits(mask), mask.shape, mask.device) for name, mask in masks.items()}
        )

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return a mask, on the device that it came from."""
        bits, shape, device = self._packed[name]
        return unpack_bits(bits, shape).to(device)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._packed)

    def __len__(self) -> int:
        """How many masks there are."""
        return len(self._packed)
