"""Compile a masked ResNet-18, so that FXPRUNE_DUMP has something to show: `make dump`."""

from __future__ import annotations

import os
import sys

import torch
import torchvision

import fxprune
from benchmarks.masks import make_masks


def main() -> int:
    """Compile with 80 % of the weights masked in groups of 32 rows, and print the report."""
    if not os.environ.get("FXPRUNE_DUMP"):
        print("Set FXPRUNE_DUMP to a folder.", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    masks = make_masks(model, "rowgroup", 0.8, seed=0, rows=32)
    compiled = fxprune.compile(model, masks, example_inputs=torch.randn(1, 3, 224, 224))
    print(compiled.report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
