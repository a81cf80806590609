"""The inputs of every micro-batch, and their outputs as one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def split_inputs(inputs: Sequence[object], images: int) -> list[list[object]]:
    """Return the inputs of every micro-batch.

    Args:
        inputs: Flat inputs; the first axis of every tensor is the batch.
        images: Images of a micro-batch.
    """
    batch = next(value.shape[0] for value in inputs if isinstance(value, torch.Tensor))
    return [
        [value[start : start + images] if isinstance(value, torch.Tensor) else value for value in inputs]
        for start in range(0, batch, images)
    ]


def join_outputs(outputs: Sequence[Sequence[object]]) -> list[object]:
    """Return the outputs of all micro-batches as one batch."""
    return [torch.cat(list(pieces)) for pieces in zip(*outputs, strict=True)]
