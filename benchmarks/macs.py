"""Count multiply-adds of a masked model; the ratio dense / kept is the limit that no kernel can pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class MacCount:
    """Multiply-adds of one call, over all convolutions, linear layers and attentions.

    Attributes:
        dense: MACs of the dense model.
        kept: MACs of the kept weights; a layer without a mask counts whole.
    """

    dense: int
    kept: int

    @property
    def limit(self) -> float:
        """The largest possible speed-up if time were MACs (Amdahl's law with the unmasked layers as its fixed part)."""
        return self.dense / max(1, self.kept)


def count_macs(model: nn.Module, masks: Mapping[str, torch.Tensor], x: torch.Tensor) -> MacCount:
    """Count the MACs of `model(x)` by running it once.

    Args:
        model: Model in eval mode.
        masks: Bool masks by parameter name.
        x: Input, [N, ...].
    """
    totals = {"dense": 0, "kept": 0}

    def add(name: str, weight: torch.Tensor, positions: int) -> None:
        mask = masks.get(name)
        totals["dense"] += positions * weight.numel()
        totals["kept"] += positions * (weight.numel() if mask is None else int(mask.count_nonzero()))

    def count(name: str, layer: nn.Module, y: Any) -> None:
        if isinstance(layer, nn.MultiheadAttention):
            tokens, width = y[0].shape[1 if layer.batch_first else 0], layer.embed_dim
            positions = y[0].numel() // width
            add(f"{name}.in_proj_weight", layer.in_proj_weight, positions)
            add(f"{name}.out_proj.weight", layer.out_proj.weight, positions)  # no hook sees it: no module is called
            totals["dense"] += 2 * positions * tokens * width
            totals["kept"] += 2 * positions * tokens * width
        else:
            weight = layer.get_parameter("weight")
            add(f"{name}.weight", weight, y.numel() // weight.shape[0])

    hooks = [
        module.register_forward_hook(lambda layer, _, y, name=name: count(name, layer, y))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.MultiheadAttention))
    ]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return MacCount(totals["dense"], totals["kept"])
