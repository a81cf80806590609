"""Runs of a program as one recorded CUDA graph, once shapes repeat; where that cannot be, as they are, with a reason.

The first run is one launch after another. The second one is, too; then the same is recorded on inputs of its own, and
replayed on the second run's: only if its results are the same every later run is a replay: a copy of the inputs, one
launch, a copy of the results. What cannot be recorded, an operator that waits for the GPU or looks at its numbers, or
memory that is not there, shows in one of these steps, and later runs stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from fxprune.codegen.cuda.device import Device
from fxprune.errors import UnsupportedError

logger = logging.getLogger(__name__)

Forward = Callable[[Sequence[object]], list[object]]
"""Runs a program on flat inputs."""

_ROUNDINGS = 64
"""How far a replay may be from the run, as a multiple of the type's epsilon times the largest result: libraries may
choose another algorithm."""


class Recording:
    """The runs of one program on one device.

    Attributes:
        reason: Why runs are not replayed; None: they are, or nothing was tried yet.
    """

    def __init__(self, device: Device, forward: Forward) -> None:
        """Start without a graph.

        Args:
            device: Where the program runs.
            forward: Runs it; the results share no memory with it.
        """
        self._device, self._forward = device, forward
        self._runs = 0
        self._graph: _Graph | None = None
        self.reason: str | None = None

    @property
    def is_replayed(self) -> bool:
        """Whether runs are replays of a graph."""
        return self._graph is not None

    def run(self, inputs: Sequence[object]) -> list[object]:
        """Run on flat inputs; while somebody else records, every launch is his."""
        if self._device.is_recording():
            return self._forward(inputs)
        if self._graph is not None:
            return self._graph.run(inputs)
        outputs = self._forward(inputs)
        self._runs += 1
        if self._runs == 2:
            self._record(inputs, outputs)
        return outputs

    def _record(self, inputs: Sequence[object], outputs: Sequence[object]) -> None:
        try:
            graph = _Graph(self._device, self._forward, inputs)
            self.reason = _find_difference(outputs, graph.run(inputs))
        except (UnsupportedError, RuntimeError) as error:  # torch's errors of a GPU are RuntimeErrors
            self.reason = str(error)
        if self.reason is not None:
            logger.info("runs stay one launch after another: %s", self.reason)
            return
        self._graph = graph
        logger.info("further runs are replays of one CUDA graph")


class _Graph:
    """A recorded run."""

    def __init__(self, device: Device, forward: Forward, inputs: Sequence[object]) -> None:
        """Record a run on zeros.

        Raises:
            UnsupportedError: An input is no tensor, or the run cannot be recorded.
        """
        self._held: list[torch.Tensor] = []
        for index, value in enumerate(inputs):
            if not isinstance(value, torch.Tensor):
                raise UnsupportedError(f"input {index} is a {type(value).__name__}; a graph's inputs are tensors.")
            with torch.inference_mode(False):
                self._held.append(torch.zeros_like(value))
        forward(self._held)  # what lies in the program's memory now is not what a replay has to find there
        self._replay, self._outputs = device.record(lambda: forward(self._held))

    def run(self, inputs: Sequence[object]) -> list[object]:
        """Replay on inputs; the results are copies."""
        for held, value in zip(self._held, inputs, strict=True):
            assert isinstance(value, torch.Tensor)
            held.copy_(value)
        self._replay()
        return [value.clone() if isinstance(value, torch.Tensor) else value for value in self._outputs]


def _find_difference(run: Sequence[object], replay: Sequence[object]) -> str | None:
    """Say how a replay differs from the run that it repeats, or return None."""
    for index, (wanted, found) in enumerate(zip(run, replay, strict=True)):
        if isinstance(wanted, torch.Tensor) and isinstance(found, torch.Tensor):
            if not _is_same(wanted, found):
                return f"a replay of the recorded graph has another result {index} than the run."
        elif wanted != found:
            return f"result {index} is {wanted!r} and not a tensor; a replay cannot follow it."
    return None


def _is_same(wanted: torch.Tensor, found: torch.Tensor) -> bool:
    if not wanted.is_floating_point():
        return torch.equal(wanted, found)
    finite, eps = wanted.isfinite(), torch.finfo(wanted.dtype).eps
    if not torch.equal(finite, found.isfinite()):
        return False
    exact = torch.where(finite, wanted, 0).double()
    off = exact - torch.where(finite, found, 0).double()
    return not off.numel() or bool(off.abs().max() <= _ROUNDINGS * eps * exact.abs().max())
