"""The pipeline: the passes in the order in which they run."""

from __future__ import annotations

from fxprune.passes.base import Pass, PassRecord, PassResult, Refusal, run_passes
from fxprune.passes.eliminate_channels import EliminateChannels
from fxprune.passes.fold_batch_norm import FoldBatchNorm
from fxprune.passes.fuse_epilogue import FuseEpilogue
from fxprune.passes.group_rows import GroupRows

__all__ = [
    "EliminateChannels",
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


def default_pipeline(efficiency: tuple[tuple[int, float], ...]) -> tuple[Pass, ...]:
    """Return the passes of `structure="exact"`.

    Args:
        efficiency: Pairs (group height in rows, rate of the target's kernel as a share of the dense rate).

    Returns:
        The passes in order.
    """
    return (FoldBatchNorm(), GroupRows(efficiency=efficiency), FuseEpilogue())
