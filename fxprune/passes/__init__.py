"""The pipeline: the passes in the order in which they run."""

from __future__ import annotations

from fxprune.passes.base import Pass, PassRecord, PassResult, Refusal, run_passes
from fxprune.passes.fold_batch_norm import FoldBatchNorm
from fxprune.passes.fuse_epilogue import FuseEpilogue
from fxprune.passes.group_rows import GroupRows

__all__ = [
    "FoldBatchNorm",
    "FuseEpilogue",
    "GroupRows",
    "Pass",
    "PassRecord",
    "PassResult",
    "Refusal",
    "default_pipeline",
    "run_passes",
]

ROW_LANE_EFFICIENCY = ((1, 0.22), (2, 0.39), (4, 0.65), (8, 0.85), (16, 0.90), (32, 0.97))
"""(Group height in rows, rate of the sparse kernel as a share of the dense rate), probed on AVX-512 on one thread."""


def default_pipeline(efficiency: tuple[tuple[int, float], ...] = ROW_LANE_EFFICIENCY) -> tuple[Pass, ...]:
    """Return the passes of `structure="exact"`.

    Args:
        efficiency: Pairs (group height in rows, rate of the target's kernel as a share of the dense rate).

    Returns:
        The passes in order.
    """
    return (FoldBatchNorm(), GroupRows(efficiency=efficiency), FuseEpilogue())
