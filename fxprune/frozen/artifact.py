"""What a file of a compiled model holds, and how it is written.

manifest.json     versions, kind of processor, the digest of every member
graph.json        one entry for each set of input shapes: inputs, outputs, graph, recipe, facts of the masks, report
tensors.safetensors     all tensors, each once
kernels/N.so      the shared library of entry N

The captured graph is not kept in memory for the day on which somebody saves. It is made again from the model, and its
digest tells whether the model is still the one that was compiled.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save
from torch.utils._pytree import TreeSpec

from fxprune.errors import UnsupportedError
from fxprune.frozen.container import write_container
from fxprune.frozen.graph import write_graph
from fxprune.frozen.inputs import InputForm, write_spec
from fxprune.frozen.report import write_facts, write_originals, write_report
from fxprune.frozen.tensors import TensorStore
from fxprune.graph import Captured
from fxprune.originals import OriginalLayer
from fxprune.report import CompileReport, MaskFacts

FORMAT = "fxprune compiled model"
SCHEMA = 2
"""Form of the file; a reader knows exactly one."""

GRAPH = "graph.json"
TENSORS = "tensors.safetensors"

LIBRARIES = ("fxprune", "torch", "apache-tvm", "apache-tvm-ffi")
"""Libraries whose version decides whether a file is taken as it is."""


class Binary(Protocol):
    """Built kernels."""

    @property
    def binary(self) -> bytes:
        """The bytes of the shared library."""


class Source:
    """The captured graph of a specialisation, which can be made again.

    Attributes:
        form: The inputs it was captured for.
        facts: What the report says of the masks.
        originals: The layers before any pass.
    """

    def __init__(
        self,
        again: Callable[[InputForm], Captured],
        form: InputForm,
        facts: MaskFacts,
        originals: tuple[OriginalLayer, ...],
        captured: Captured,
    ) -> None:
        """Take the digest of a captured graph; the graph itself is not kept.

        Args:
            again: Captures the model and runs all passes.
            form: The inputs.
            facts: What the report says of the masks.
            originals: The layers before any pass.
            captured: The graph after all passes.
        """
        self.form, self.facts, self.originals = form, facts, originals
        self._again, self._digest = again, _digest_of(captured)

    def write(self, store: TensorStore) -> dict[str, object]:
        """Capture again; return the graph as JSON, its tensors go into the store.

        Raises:
            UnsupportedError: The model has changed since, or cannot be written.
        """
        with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
            captured = self._again(self.form)
        written = write_graph(captured.graph_module, store)
        if self._digest != _digest_text(written):
            raise UnsupportedError(
                "The model was changed after it was compiled: its weights, or its code, differ. Save right after "
                "compiling, or compile again."
            )
        return written


def _digest_of(captured: Captured) -> str | None:
    """Return the digest of a graph; None if there is no form for it in a file, which `write` will say."""
    try:
        return _digest_text(write_graph(captured.graph_module, TensorStore(keep=False)))
    except UnsupportedError:
        return None


def _digest_text(written: Mapping[str, object]) -> str:
    """Return the digest of a graph as JSON; tensors are in it by their own digests."""
    return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Part:
    """A model compiled for one set of input shapes, as it is written.

    Attributes:
        source: Its graph; None if it was read from a file.
        out_spec: How its flat results become what the model returns.
        report: What was done.
        recipe: What the graph is lowered with.
        library: Its kernels, if it has any.
    """

    source: Source | None
    out_spec: TreeSpec
    report: CompileReport
    recipe: Mapping[str, object]
    library: Binary | None


def write_artifact(path: Path, parts: Sequence[Part], masks: Mapping[str, torch.Tensor]) -> None:
    """Write a compiled model.

    Args:
        path: Where to.
        parts: All its specialisations.
        masks: Its final masks by parameter name.

    Raises:
        UnsupportedError: It was loaded from a file, was changed, or holds something that has no form in the file.
        ArtifactError: The file cannot be written.
    """
    store = TensorStore()
    entries = [_write_part(part, store) for part in parts]
    graph = {"masks": {name: store.add_mask(mask) for name, mask in masks.items()}, "parts": entries}
    members = {GRAPH: json.dumps(graph).encode(), TENSORS: save(store.tensors)}
    for number, part in enumerate(parts):
        if part.library is not None:
            members[kernels_name(number)] = part.library.binary
    facts = {"format": FORMAT, "schema": SCHEMA, "versions": installed_versions(), "machine": platform.machine()}
    write_container(path, facts, members)


def _write_part(part: Part, store: TensorStore) -> dict[str, object]:
    if part.source is None:
        raise UnsupportedError("This model was loaded from a file and is not written again. Copy that file.")
    return {
        "graph": part.source.write(store),
        "inputs": part.source.form.write(),
        "outputs": write_spec(part.out_spec),
        "recipe": dict(part.recipe),
        "facts": write_facts(part.source.facts),
        "originals": write_originals(part.source.originals),
        "report": write_report(part.report),
    }


def kernels_name(number: int) -> str:
    """Return the name of the member that holds the library of a specialisation."""
    return f"kernels/{number}.so"


def installed_versions() -> dict[str, str]:
    """Return the versions on which a file depends."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}
