"""The pipeline: the passes in the order in which they run."""

from __future__ import annotations

from fxprune.passes.base import Pass, PassRecord, PassResult, Refusal, run_passes
from fxprune.passes.eliminate_channels import EliminateChannels
from fxprune.passes.fold_batch_norm import FoldBatchNorm
from fxprune.passes.fuse_epilogue import FuseEpilogue
from fxprune.passes.group_rows import GroupRows
from fxprune.passes.merge_views import MergeViews
from fxprune.passes.refill import Refill
from fxprune.passes.regroup import Regroup
from fxprune.structure.refill import RefillRule
from fxprune.structure.regroup import VectorRule

__all__ = [
    "EliminateChannels",
    "FoldBatchNorm",
    "FuseEpilogue",
    "GroupRows",
    "MergeViews",
    "Pass",
    "PassRecord",
    "PassResult",
    "Refill",
    "Refusal",
    "Regroup",
    "default_pipeline",
    "run_passes",
]


REFILL_PLUS_RATE = 0.2
"""Share of the remaining rows that refill+ keeps in addition: takes 32.84 % to 46.41 %, as in the paper's table A2."""


def default_pipeline(
    efficiency: tuple[tuple[int, float], ...], structure: str = "exact", narrow: tuple[tuple[int, float], ...] = ()
) -> tuple[Pass, ...]:
    """Return the passes.

    Args:
        efficiency: Pairs (group height in rows, rate of the target's kernel as a share of the dense rate); empty for a
            target without kernels of ours: the result is a dense graph, as small as it can be.
        structure: A key of `fxprune.arguments.STRUCTURES`.
        narrow: The pairs for layers in 16 bits; empty: the same.

    Returns:
        The passes in order.
    """
    changing: dict[str, tuple[Pass, ...]] = {
        "exact": (),
        "refill": (Refill(),),
        "refill+": (Refill(RefillRule(rate=REFILL_PLUS_RATE)),),
        "regroup": (Regroup(VectorRule(efficiency=efficiency)),),
    }
    if not efficiency:
        return (FoldBatchNorm(), *changing[structure], EliminateChannels())
    cut = EliminateChannels(adds="align")
    return (FoldBatchNorm(), *changing[structure], cut, GroupRows(efficiency, narrow), MergeViews(), FuseEpilogue())
