"""One point of the benchmark: the model, its masks, the input and the reference output."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.cut import CutNetwork
from benchmarks.macs import MacCount, count_macs
from benchmarks.masks import STRUCTURES, apply_masks, make_masks, restore_scale
from benchmarks.models import MODELS, build_model, make_input


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        model: Name of the model.
        batch: Batch size N.
        structure: Kind of mask.
        sparsity: Share of weights that are pruned.
        rows: Height of the row groups; 0 for the other structures.
        shuffle_rows: Whether the rows of a group are drawn at random.
        seed: Seed of weights, masks and input.
        cut: Whether the dense engines run the network without its dead channels, as one would build it by hand.
    """

    model: str
    batch: int
    structure: str
    sparsity: float
    rows: int = 0
    shuffle_rows: bool = False
    seed: int = 0
    cut: bool = False

    @property
    def mask_label(self) -> str:
        """The kind of mask in words, e.g. "rowgroup 32"."""
        rows = f" {self.rows}" if self.structure == "rowgroup" else ""
        return f"{self.structure}{rows}{' shuffled' if self.shuffle_rows and rows else ''}"

    @property
    def label(self) -> str:
        """The whole case in words."""
        cut = ", dense engines on the cut network" if self.cut else ""
        return f"{self.model}, batch {self.batch}, {self.mask_label}, sparsity {self.sparsity:g}{cut}"


def add_case_options(parser: argparse.ArgumentParser, models: Sequence[str] = MODELS) -> None:
    """Add the options of one case, and of the threads that run it.

    Args:
        parser: The command line.
        models: Names to choose from.
    """
    add, threads = parser.add_argument, min(2, len(os.sched_getaffinity(0)))
    add("--model", choices=models, default="resnet50", metavar="NAME", help=", ".join(models))
    add("--batch", type=int, default=1, metavar="N", help="batch size (1)")
    add("--sparsity", type=float, default=0.8, metavar="S", help="share of pruned weights (0.8)")
    kinds = f"{', '.join(STRUCTURES)} (rowgroup)"
    add("--structure", choices=STRUCTURES, default="rowgroup", metavar="KIND", help=kinds)
    add("--rows", type=int, default=32, metavar="R", help="height of the row groups (32)")
    add("--threads", type=int, default=threads, help=f"threads ({threads})")


def read_case(options: argparse.Namespace) -> Case:
    """Return the case that the options of `add_case_options` name."""
    rows = options.rows if options.structure == "rowgroup" else 0
    return Case(options.model, options.batch, options.structure, options.sparsity, rows)


@dataclass(frozen=True)
class Problem:
    """A case, made concrete; what every peer is built from.

    Attributes:
        case: The case.
        model: The model without masks, contiguous weights.
        masks: Bool masks by parameter name.
        x: Input of N images, or N times the tokens of an image, float32, contiguous.
        macs: MACs of one call.
    """

    case: Case
    model: nn.Module
    masks: dict[str, torch.Tensor]
    x: torch.Tensor
    macs: MacCount

    @functools.cached_property
    def masked(self) -> nn.Module:
        """The masked dense model with channels_last weights, or what a cut leaves of it: what the dense peers run."""
        if self.case.cut:
            return CutNetwork(self.model, self.masks, self.x)
        return apply_masks(self.model, self.masks).to(memory_format=torch.channels_last)

    @functools.cached_property
    def reference(self) -> torch.Tensor:
        """Output of the masked dense model in float64, [N, ...]."""
        model = apply_masks(self.model, self.masks).double()  # contiguous: float64 is slow in channels_last
        with torch.no_grad():
            # Image by image: float64 convolutions unfold their input, which for a batch of 16 takes gigabytes.
            outputs = [model(image) for image in torch.split(self.x.double(), 1)]
        return torch.cat(outputs)

    def find_error(self, y: torch.Tensor) -> float:
        """Return max |y - reference| / max |reference|; NaN if y has another shape."""
        if y.shape != self.reference.shape:
            return float("nan")
        return float((y.double() - self.reference).abs().max() / self.reference.abs().max())


def build_problem(case: Case) -> Problem:
    """Build model, masks and input of a case.

    Raises:
        ValueError: The case names an unknown model or structure, or a number is out of range.
    """
    if case.batch < 1:
        raise ValueError(f"batch is {case.batch}; it must be at least 1")
    model = build_model(case.model, case.seed)
    masks = make_masks(model, case.structure, case.sparsity, case.seed, rows=case.rows, shuffle_rows=case.shuffle_rows)
    restore_scale(model, masks)
    macs = count_macs(model, masks, make_input(case.model, 1, case.seed))
    return Problem(
        case=case,
        model=model,
        masks=masks,
        x=make_input(case.model, case.batch, case.seed),
        macs=MacCount(macs.dense * case.batch, macs.kept * case.batch),
    )
