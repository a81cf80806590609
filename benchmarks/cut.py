"""The masked network without its dead channels, as one would build it by hand: layers of fewer channels, all dense."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from benchmarks.masks import apply_masks
from fxprune.graph import annotate, capture
from fxprune.passes import EliminateChannels, FoldBatchNorm, run_passes


class CutNetwork(nn.Module):
    """A captured graph with one output."""

    def __init__(self, model: nn.Module, masks: Mapping[str, torch.Tensor], x: torch.Tensor) -> None:
        """Cut a model.

        Args:
            model: The model without masks.
            masks: Bool masks by parameter name.
            x: An input.
        """
        super().__init__()
        self.graph_module = capture(apply_masks(model, masks), (x,), {}, masks).graph_module
        annotate(self.graph_module, masks)
        run_passes(self.graph_module, (FoldBatchNorm(), EliminateChannels(adds="align")))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the network."""
        output: torch.Tensor = self.graph_module(x)[0]
        return output
