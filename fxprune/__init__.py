"""fxprune: a compiler that makes pruned PyTorch models fast, with the same numbers."""

from fxprune.checkpoint import expand_state, shrink_state
from fxprune.compiled import CompiledModule
from fxprune.compiler import compile  # noqa: A004  # the public name; torch.compile has it too
from fxprune.errors import (
    ArtifactError,
    CodegenError,
    FxpruneError,
    MaskError,
    PostconditionError,
    PreconditionError,
    UnsupportedError,
    VerifyError,
)
from fxprune.integrate import load
from fxprune.masks import load_masks, save_masks
from fxprune.transform import ChangedMasks, MaskChange, find_coupled, refill, regroup, saliency
from fxprune.tuner import tune

__all__ = [
    "ArtifactError",
    "ChangedMasks",
    "CodegenError",
    "CompiledModule",
    "FxpruneError",
    "MaskChange",
    "MaskError",
    "PostconditionError",
    "PreconditionError",
    "UnsupportedError",
    "VerifyError",
    "compile",
    "expand_state",
    "find_coupled",
    "load",
    "load_masks",
    "refill",
    "regroup",
    "saliency",
    "save_masks",
    "shrink_state",
    "tune",
]
