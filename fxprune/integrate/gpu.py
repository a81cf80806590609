"""The three ways to run a loaded graph on a GPU: the file's kernels, kernels compiled here, dense torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch.utils._pytree import TreeSpec

from fxprune.compiled import Specialisation
from fxprune.frozen.artifact import installed_versions
from fxprune.integrate.native import Stored
from fxprune.originals import count_from_originals
from fxprune.report import LayerReport


def is_for_gpu(recipe: Mapping[str, object]) -> bool:
    """Whether a recipe is that of a program for a GPU."""
    target = recipe.get("target")
    return isinstance(target, Mapping) and target.get("kind") == "cuda"


def open_specialisation(stored: Stored, out_spec: TreeSpec, binary: bytes, native: str) -> Specialisation:
    """Make a program for a GPU; it looks for one when it is first called.

    Args:
        stored: The specialisation.
        out_spec: How its flat results become what the model returns.
        binary: Its library; empty if it has no kernels.
        native: As in `load`.

    Raises:
        ArtifactError: The kernels are not those that belong to the graph.
    """
    from fxprune import backend_cuda

    gm, facts, recipe = stored.graph_module, stored.facts, stored.recipe
    if native == "dense":
        program, layers, verdict = backend_cuda.keep_dense(gm, facts, recipe, "loaded with native='dense'")
        report = replace(stored.report, layers=_count(stored, layers), whole_model=verdict)
        return Specialisation(program, out_spec, replace(report, versions=installed_versions()))
    program = backend_cuda.restore(gm, recipe, binary if native == "trust" else None)
    report = stored.report if native == "trust" else replace(stored.report, versions=installed_versions())
    made = backend_cuda.guard(gm, facts, program, out_spec, report)
    return replace(made, dense_layers=_count(stored, made.dense_layers))


def _count(stored: Stored, layers: Sequence[LayerReport]) -> tuple[LayerReport, ...]:
    return count_from_originals(layers, stored.originals, stored.facts.kept_weight)
