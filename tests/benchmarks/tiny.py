"""A network of three layers and the smallest problem that a peer can be built from."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.case import Case, Problem
from benchmarks.macs import count_macs
from benchmarks.masks import make_masks
from benchmarks.models import randomise_batch_norm

CASE = Case("tiny", 2, "rowgroup", 0.5, rows=4)


def build_tiny_model() -> nn.Module:
    """Build stem, one masked convolution, a depthwise one, and the last linear layer."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    randomise_batch_norm(model)
    return model.eval()


def build_tiny_problem() -> Problem:
    """Build the problem; input [2, 3, 8, 8]."""
    model = build_tiny_model()
    masks = make_masks(model, "rowgroup", 0.5, 0, rows=4)
    x = torch.randn(2, 3, 8, 8)
    return Problem(CASE, model, masks, x, count_macs(model, masks, x))
