"""The report of a whole compilation, whatever the target."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

import torch
from torch import fx

from fxprune.channels.record import compose_cuts
from fxprune.passes import PassRecord
from fxprune.report import CompileReport, LayerReport, MaskFacts


def report_model(
    gm: fx.GraphModule,
    inputs: Sequence[object],
    records: Sequence[PassRecord],
    facts: MaskFacts,
    *,
    target: str,
    threads: int,
    layers: Iterable[LayerReport],
    whole_model: str,
    overhead: Mapping[str, float] | None = None,
    libraries: Iterable[str],
    start: float,
) -> CompileReport:
    """Report a compilation that ends now.

    Args:
        gm: The graph after all passes.
        inputs: Flat example inputs.
        records: What the passes did.
        facts: What the report says of the masks.
        target: What was compiled for.
        threads: Threads of the kernels.
        layers: The layers.
        whole_model: What runs the model, and why.
        overhead: Where the time of a call goes; None: not measured, or no kernels.
        libraries: Names of the distributions whose versions count.
        start: `time.perf_counter` when the compilation began.
    """
    return CompileReport(
        target=target,
        threads=threads,
        input_shapes=tuple(tuple(value.shape) for value in inputs if isinstance(value, torch.Tensor)),
        channels=tuple(map(asdict, compose_cuts(gm))),
        layers=tuple(layers),
        passes=tuple(asdict(record) for record in records),
        refusals=tuple((refusal.node, refusal.reason) for record in records for refusal in record.refusals),
        function_change=facts.function_change,
        whole_model=whole_model,
        overhead=overhead,
        compile_seconds=time.perf_counter() - start,
        versions={name: importlib.metadata.version(name) for name in libraries},
    )
