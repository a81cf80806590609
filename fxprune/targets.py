"""From the `target` argument to what builds for it; TVM is loaded only for targets that need it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fxprune.arguments import Options
from fxprune.compiled import Specialisation
from fxprune.graph import Captured
from fxprune.passes import PassRecord
from fxprune.report import MaskFacts

Build = Callable[[Captured, Sequence[object], Sequence[PassRecord], MaskFacts, float], Specialisation]
"""Builds from the graph after all passes, flat inputs, records, mask facts and the time at which compiling began."""


@dataclass(frozen=True)
class Backend:
    """What a target needs.

    Attributes:
        efficiency: Pairs (group height in rows, rate of the target's kernel over the dense rate); empty: no kernels.
        build: Makes what runs.
    """

    efficiency: tuple[tuple[int, float], ...]
    build: Build


def open_backend(target: str | Mapping[str, object], options: Options) -> Backend:
    """Return what builds for a target.

    Args:
        target: "torch" for the cut dense graph; "cpu" or a TVM target for kernels.
        options: Threads, and whether kernels are measured.

    Raises:
        UnsupportedError: The target is not supported.
    """
    if target == "torch":
        from fxprune import shrunk

        return Backend((), shrunk.build)
    from fxprune import backend  # loads TVM, which `import fxprune` does not

    cpu = backend.prepare_target(target, options.threads)

    def build(
        captured: Captured, inputs: Sequence[object], records: Sequence[PassRecord], facts: MaskFacts, start: float
    ) -> Specialisation:
        made = backend.build(captured, inputs, records, facts, cpu, measure=options.measure, start=start)
        backend.release_unused()
        return made

    return Backend(cpu.efficiency, build)
