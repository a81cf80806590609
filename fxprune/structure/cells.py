"""One layer as the mathematics sees it, before and after its mask changed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fxprune.annotation import RowGroup

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Cells:
    """The 2-D view of one weight: a row is an output channel, a column an input channel and kernel position.

    Invariants (checked when built): the mask is bool [O, n]; the scores are finite, at least 0, and [O, n] or [O].

    Attributes:
        mask: True = kept, [O, n].
        scores: How much each cell [O, n] or each row [O] is worth; what pruned cells are worth is not read.
        conv_groups: Conv groups; row r belongs to conv group r // (O / conv_groups).
        kernel: Columns of one input channel, kh * kw.
    """

    mask: BoolArray
    scores: FloatArray
    conv_groups: int = 1
    kernel: int = 1

    def __post_init__(self) -> None:
        if self.mask.ndim != 2 or self.mask.dtype != np.bool_:
            raise ValueError(f"mask is {self.mask.dtype} with shape {self.mask.shape}; it needs to be bool [O, n]")
        if self.scores.shape not in (self.mask.shape, self.mask.shape[:1]):
            raise ValueError(f"scores have shape {self.scores.shape}, the mask has {self.mask.shape}")
        if not bool(np.all(self.scores >= 0)) or not bool(np.all(np.isfinite(self.scores))):
            raise ValueError("scores hold a value that is negative or not finite")
        if self.conv_groups < 1 or self.mask.shape[0] % self.conv_groups:
            raise ValueError(f"{self.mask.shape[0]} rows do not divide into {self.conv_groups} conv groups")

    @property
    def depthwise(self) -> bool:
        """Whether every row has input channels of its own."""
        return self.conv_groups > 1 and self.conv_groups == self.mask.shape[0]


@dataclass(frozen=True, eq=False)
class Changed:
    """What became of the mask of one layer.

    Attributes:
        mask: True = kept, [O, n].
        groups: The row groups of a regrouped mask.
        reason: Why the mask is as it was, or what else is worth knowing, as a sentence; None if all went as asked.
        refused: The mask is as it was, for that reason.
    """

    mask: BoolArray
    groups: tuple[RowGroup, ...] = field(default=())
    reason: str | None = None
    refused: bool = False
