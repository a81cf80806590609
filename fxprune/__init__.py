"""fxprune: a compiler that makes pruned PyTorch models fast, with the same numbers."""

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

__all__ = [
    "ArtifactError",
    "CodegenError",
    "CompiledModule",
    "FxpruneError",
    "MaskError",
    "PostconditionError",
    "PreconditionError",
    "UnsupportedError",
    "VerifyError",
    "compile",
]
