"""What a network runs on: fxprune, and torch as it is and compiled."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch._dynamo
import torch._inductor.config
from torch import Tensor, nn

import fxprune

TOLERANCE = 1e-5
"""Largest error of a compiled ticket against the masked network in float64, as a share of the largest output."""


@dataclass(frozen=True, eq=False)
class Built:
    """A network that is ready to be timed.

    Attributes:
        engine: "fxprune", "eager" or "torch.compile".
        forward: Takes images [N, C, H, W] in the engine's memory order.
        x: Images in that order.
        error: Largest difference to float64 as a share of the largest output; None for torch itself.
        macs: Multiply-adds of the dense network, of the kept weights, and those that are executed; None for torch.
    """

    engine: str
    forward: Callable[[Tensor], Tensor]
    x: Tensor
    error: float | None = None
    macs: tuple[int, int, int] | None = None

    def __call__(self) -> Tensor:
        """Run the network once."""
        with torch.no_grad():
            return self.forward(self.x)


def build_dense(model: nn.Module, x: Tensor) -> list[Built]:
    """Build the engines of torch, images in the order that they like best.

    Args:
        model: The network in eval mode.
        x: Images [N, C, H, W].
    """
    torch._inductor.config.freezing = True  # weights are constants, as they are for fxprune
    torch._dynamo.reset()
    images = x.to(memory_format=torch.channels_last)
    compiled: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False)
    built = [Built("eager", model, images), Built("torch.compile", compiled, images)]
    for engine in built:
        engine()
    return built


def build_ticket(model: nn.Module, masks: Mapping[str, Tensor], x: Tensor, threads: int) -> Built:
    """Compile a network with fxprune and check its output.

    Args:
        model: The trained network in eval mode; its pruned weights are zero.
        masks: Its masks; empty: dense.
        x: Images [N, C, H, W].
        threads: Threads of the kernels.

    Raises:
        ValueError: The output is wrong.
    """
    with tempfile.TemporaryDirectory() as folder:  # never what this machine's user has tuned
        records, options = Path(folder) / "records.jsonl", {"threads": threads}
        compiled = fxprune.compile(model, masks or None, example_inputs=(x,), database=records, options=options)
    error = _find_error(model, compiled, x)
    if not error <= TOLERANCE:  # false for NaN too
        raise ValueError(f"a compiled ticket has an error of {error:.1e} of the largest output, allowed {TOLERANCE:g}")
    totals = compiled.report.totals()
    return Built("fxprune", compiled, x, error, (totals.macs_dense, totals.macs_kept, totals.macs_run))


def _find_error(model: nn.Module, compiled: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double())
        return float((compiled(x).double() - expected).abs().max() / expected.abs().max())
