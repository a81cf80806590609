"""The three ways to run a loaded graph on a GPU: the file's kernels, kernels compiled here, dense torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from fxprune.frozen.artifact import installed_versions
from fxprune.integrate.native import Stored
from fxprune.originals import count_from_originals
from fxprune.report import CompileReport

if TYPE_CHECKING:
    from fxprune.lowering.cuda.program import CudaProgram


def is_for_gpu(recipe: Mapping[str, object]) -> bool:
    """Whether a recipe is that of a program for a GPU."""
    target = recipe.get("target")
    return isinstance(target, Mapping) and target.get("kind") == "cuda"


def open_program(stored: Stored, binary: bytes, native: str) -> tuple[CudaProgram, CompileReport]:
    """Make a program for a GPU; it looks for one when it is first called.

    Args:
        stored: The specialisation.
        binary: Its library; empty if it has no kernels.
        native: As in `load`.

    Raises:
        ArtifactError: The kernels are not those that belong to the graph.
    """
    from fxprune import backend_cuda

    if native == "trust":
        return backend_cuda.restore(stored.graph_module, stored.recipe, binary), stored.report
    if native == "rebuild":
        program = backend_cuda.restore(stored.graph_module, stored.recipe, None)
        return program, replace(stored.report, versions=installed_versions())
    program, layers, verdict = backend_cuda.keep_dense(
        stored.graph_module, stored.facts, stored.recipe, "loaded with native='dense'"
    )
    report = replace(
        stored.report,
        layers=count_from_originals(layers, stored.originals, stored.facts.kept_weight),
        whole_model=verdict,
        versions=installed_versions(),
    )
    return program, report
