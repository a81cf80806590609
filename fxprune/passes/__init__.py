"""The pipeline: the passes in the order in which they run."""

from __future__ import annotations

from fxprune.passes.base import Pass, PassRecord, PassResult, Refusal, run_passes
from fxprune.passes.fold_batch_norm import FoldBatchNorm
from fxprune.passes.fuse_epilogue import FuseEpilogue

__all__ = [
    "FoldBatchNorm",
    "FuseEpilogue",
    "Pass",
    "PassRecord",
    "PassResult",
    "Refusal",
    "default_pipeline",
    "run_passes",
]


def default_pipeline() -> tuple[Pass, ...]:
    """Return the passes of `structure="exact"`."""
    return (FoldBatchNorm(), FuseEpilogue())
