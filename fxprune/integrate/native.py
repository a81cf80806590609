"""The three ways to run the layers of a loaded graph: the file's kernels, kernels built here, dense torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import fx

from fxprune.errors import ArtifactError
from fxprune.frozen.artifact import installed_versions
from fxprune.frozen.inputs import InputForm
from fxprune.originals import OriginalLayer, count_from_originals
from fxprune.report import CompileReport, MaskFacts

if TYPE_CHECKING:
    from fxprune.backend import Decision
    from fxprune.codegen.build import Library
    from fxprune.codegen.target import CpuTarget
    from fxprune.lowering.program import Build, Program

NATIVE = ("trust", "rebuild", "dense")
"""What `native` may be."""


@dataclass(frozen=True, eq=False)
class Stored:
    """One specialisation of a file, read.

    Attributes:
        path: The file, for messages.
        graph_module: The graph.
        form: Its inputs.
        recipe: What it was lowered with.
        facts: What the report says of the masks.
        originals: The layers of the model before any pass.
        report: The report of then.
        machine: Kind of processor that it was saved on.
    """

    path: Path
    graph_module: fx.GraphModule
    form: InputForm
    recipe: Mapping[str, Any]
    facts: MaskFacts
    originals: tuple[OriginalLayer, ...]
    report: CompileReport
    machine: str


def trust(stored: Stored, binary: bytes) -> tuple[Program, CompileReport]:
    """Run the kernels of the file.

    Args:
        stored: The specialisation.
        binary: Its shared library; empty if it has no kernels.

    Raises:
        ArtifactError: This machine cannot run them, or they are not those that belong to the graph.
    """
    from fxprune.codegen.build import Library
    from fxprune.codegen.host import missing_features
    from fxprune.codegen.plain import read_target
    from fxprune.lowering.recipe import digest_texts

    target = read_target(stored.recipe["target"])
    missing = missing_features(stored.machine, target.features) if binary else []
    if missing:
        raise ArtifactError(
            f"'{stored.path}' holds machine code for {target.mcpu}; this machine lacks {', '.join(missing)}. Pass "
            "native='rebuild' to compile it for this machine, or native='dense' to run it without kernels."
        )

    def open_library(texts: Mapping[str, str], target: CpuTarget) -> Library:
        if digest_texts(texts) != stored.recipe["functions"]:
            raise ArtifactError(
                f"The kernels in '{stored.path}' are not those that this version makes for its graph. Pass "
                "native='rebuild'."
            )
        return Library.from_binary(binary, target.threads)

    return _restore(stored, target, open_library), stored.report


def rebuild(stored: Stored) -> tuple[Program, CompileReport]:
    """Build kernels here: the same ones for the same processor, else chosen anew by timing them."""
    from fxprune import backend
    from fxprune.codegen.build import Library
    from fxprune.codegen.plain import read_target

    then = read_target(stored.recipe["target"])
    here = backend.prepare_target("cpu", then.threads)
    if here == then:
        return _restore(stored, here, Library), replace(stored.report, versions=installed_versions())
    made = backend.decide(stored.graph_module, stored.form.flat(), stored.facts, here, measure=True)
    return made.program, _renew(stored, made, here.description)


def _restore(stored: Stored, target: CpuTarget, build: Build) -> Program:
    """Lower the graph as it was lowered then."""
    from fxprune import backend
    from fxprune.codegen.plain import read_schedule

    recipe = stored.recipe
    schedules = {name: read_schedule(written) for name, written in recipe["schedules"].items()}
    return backend.restore(stored.graph_module, schedules, recipe["group_heights"], target, build, recipe["images"])


def run_dense(stored: Stored) -> tuple[Program, CompileReport]:
    """Run the graph on torch alone."""
    from fxprune import backend
    from fxprune.codegen.plain import read_target

    target = read_target(stored.recipe["target"])
    made = backend.keep_dense(stored.graph_module, stored.facts, target, "loaded with native='dense'")
    return made.program, _renew(stored, made, target.description)


def _renew(stored: Stored, made: Decision, target: str) -> CompileReport:
    """Return the report of then with the layers of now."""
    return replace(
        stored.report,
        target=target,
        layers=count_from_originals(made.layers, stored.originals, stored.facts.kept_weight),
        whole_model=made.verdict,
        overhead=None,
        versions=installed_versions(),
    )
