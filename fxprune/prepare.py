"""From a model and its masks to the graph that is lowered: captured, annotated, all passes run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from fxprune.graph import Captured, annotate, capture
from fxprune.originals import OriginalLayer, find_originals
from fxprune.passes import PassRecord, run_passes
from fxprune.passes.base import Pass
from fxprune.passes.final_masks import FinalMasks

Masks = Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model captured for one set of inputs, after all passes.

    Attributes:
        captured: The graph.
        originals: Its layers before any pass.
        records: What the passes did.
        masks: The final masks by parameter name.
    """

    captured: Captured
    originals: tuple[OriginalLayer, ...]
    records: tuple[PassRecord, ...]
    masks: Masks


def prepare(
    model: nn.Module | ExportedProgram | fx.GraphModule,
    masks: Masks,
    scores: Masks | None,
    pipeline: Sequence[Pass],
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
) -> Prepared:
    """Capture a model and run the passes.

    Args:
        model: The user's model.
        masks: Its masks by parameter name.
        scores: |w| by parameter name, for passes that change masks; else None.
        pipeline: The passes.
        args: Positional arguments of the model.
        kwargs: Keyword arguments.
    """
    captured = capture(model, args, kwargs, masks)
    annotate(captured.graph_module, masks, scores)
    originals = find_originals(captured.graph_module)
    final = FinalMasks(masks)
    records = run_passes(captured.graph_module, pipeline, (final,))
    return Prepared(captured, originals, records, final.masks)
