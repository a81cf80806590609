"""What a pass is, and the runner that keeps the graph valid between passes."""

from __future__ import annotations

import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import fx

from fxprune.debug import dump_text
from fxprune.graph import annotation_of, tidy
from fxprune.layer import find_layer
from fxprune.printer import format_graph
from fxprune.verify import verify

logger = logging.getLogger(__name__)

_SHORT_COUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Refusal:
    """A rewrite that could have applied and did not.

    Attributes:
        node: Name of the node.
        reason: A sentence with the fact in it; it ends up in the report.
    """

    node: str
    reason: str


@dataclass(frozen=True)
class PassResult:
    """What a pass did.

    Attributes:
        modified: Whether anything changed, exactly: a second run says False.
        refusals: What it could have done and did not.
    """

    modified: bool
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True)
class Pass(ABC):
    """One rewrite of the graph; a frozen dataclass whose fields are its options.

    Attributes:
        preserves_output: Whether the graph computes the same before and after; every pass states it.
    """

    preserves_output: ClassVar[bool]

    @property
    def name(self) -> str:
        """The class name in snake case, e.g. "fold_batch_norm"."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    @abstractmethod
    def requires(self, gm: fx.GraphModule) -> None:
        """Raise PreconditionError if the graph is not ready for this pass."""

    @abstractmethod
    def apply(self, gm: fx.GraphModule) -> PassResult:
        """Rewrite the graph in place; dead nodes and shapes are left to the runner."""

    @abstractmethod
    def ensures(self, gm: fx.GraphModule) -> None:
        """Raise PostconditionError if the rewritten graph lacks what this pass promises."""


@dataclass(frozen=True)
class GraphCounts:
    """The size of an annotated graph.

    Attributes:
        nodes: Function calls.
        nnz: Kept weights; a weight that two nodes share counts once.
        macs: Multiply-adds of all layers at their real shapes, as if dense.
    """

    nodes: int
    nnz: int
    macs: int


@dataclass(frozen=True)
class PassRecord:
    """What one pass did, for the report, the log and the dump.

    Attributes:
        name: The pass in snake case; "input" for the graph before the first pass.
        options: The pass as Python text, e.g. "FoldBatchNorm()".
        modified: Whether the graph changed.
        seconds: Wall time of the pass with its checks, in seconds.
        nodes_before: Function calls before.
        nodes_after: Function calls after.
        nnz_before: Kept weights before.
        nnz_after: Kept weights after.
        macs_before: Dense multiply-adds before.
        macs_after: Dense multiply-adds after.
        refusals: What the pass could have done and did not.
    """

    name: str
    options: str
    modified: bool
    seconds: float
    nodes_before: int
    nodes_after: int
    nnz_before: int
    nnz_after: int
    macs_before: int
    macs_after: int
    refusals: tuple[Refusal, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.name}: {'modified' if self.modified else 'unchanged'}, "
            f"nodes {self.nodes_before} -> {self.nodes_after}, "
            f"nnz {_short(self.nnz_before)} -> {_short(self.nnz_after)}, "
            f"macs {_short(self.macs_before)} -> {_short(self.macs_after)}, "
            f"refusals {len(self.refusals)}, {self.seconds * 1e3:.0f} ms"
        )


class Observer(Protocol):
    """Something that looks at the graph before the first pass (index 0) and after each."""

    def __call__(self, index: int, gm: fx.GraphModule, record: PassRecord, /) -> None:
        """Look; change nothing."""


def run_passes(
    gm: fx.GraphModule, passes: Sequence[Pass], observers: Sequence[Observer] = ()
) -> tuple[PassRecord, ...]:
    """Run passes in order; the graph is verified before the first and after each.

    Args:
        gm: An annotated graph; changed in place.
        passes: The pipeline.
        observers: Called with index, graph and record, after the dump.

    Returns:
        One record a pass.

    Raises:
        FxpruneError: As raised by a pass or by `verify`, with a note that names the pass.
    """
    watchers = (dump_graph, *observers)
    verify(gm)
    counts = count_graph(gm)
    _notify(watchers, 0, gm, _make_record("input", "", PassResult(False), 0.0, counts, counts))
    records: list[PassRecord] = []
    for number, step in enumerate(passes, start=1):
        start = time.perf_counter()
        try:
            result = _run_pass(gm, step)
        except Exception as error:
            error.add_note(f"while running pass {number} of {len(passes)}: {step!r}")
            raise
        seconds = time.perf_counter() - start
        before, counts = counts, count_graph(gm)
        records.append(_make_record(step.name, repr(step), result, seconds, before, counts))
        logger.info("%s", records[-1])
        _notify(watchers, number, gm, records[-1])
    return tuple(records)


def _run_pass(gm: fx.GraphModule, step: Pass) -> PassResult:
    step.requires(gm)
    result = step.apply(gm)
    for refusal in result.refusals:
        logger.debug("%s: refused %s: %s", step.name, refusal.node, refusal.reason)
    if result.modified:
        tidy(gm)
    verify(gm)
    step.ensures(gm)
    return result


def _notify(observers: Sequence[Observer], index: int, gm: fx.GraphModule, record: PassRecord) -> None:
    for observer in observers:
        observer(index, gm, record)


def dump_graph(index: int, gm: fx.GraphModule, record: PassRecord) -> None:
    """Write the graph as text into the dump folder, if FXPRUNE_DUMP names one."""
    refusals = [f"# refused {refusal.node}: {refusal.reason}" for refusal in record.refusals]
    dump_text(
        f"{index:03d}_{record.name}.txt",
        "\n".join([f"# {record} {record.options}".rstrip(), *refusals, format_graph(gm)]),
    )


def count_graph(gm: fx.GraphModule) -> GraphCounts:
    """Count calls, kept weights and dense multiply-adds."""
    nodes = sum(node.op == "call_function" for node in gm.graph.nodes)
    kept = {note.name: note.nnz for note in map(annotation_of, gm.graph.nodes) if note is not None}
    macs = sum(layer.macs for layer in map(find_layer, gm.graph.nodes) if layer is not None)
    return GraphCounts(nodes, sum(kept.values()), macs)


def _make_record(
    name: str, options: str, result: PassResult, seconds: float, before: GraphCounts, after: GraphCounts
) -> PassRecord:
    return PassRecord(
        name=name,
        options=options,
        modified=result.modified,
        seconds=seconds,
        nodes_before=before.nodes,
        nodes_after=after.nodes,
        nnz_before=before.nnz,
        nnz_after=after.nnz,
        macs_before=before.macs,
        macs_after=after.macs,
        refusals=result.refusals,
    )


def _short(count: int) -> str:
    """Return a count with three digits and a unit letter: 1820000 is "1.82M"."""
    for size, letter in _SHORT_COUNTS:
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)
