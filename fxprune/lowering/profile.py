"""Where the time of one call goes: kernels, torch's operators, and everything between them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

import torch
from torch import fx, nn
from torch.fx.node import Argument, Target

from fxprune.lowering.chain import ChainModule
from fxprune.lowering.measure import time_calls
from fxprune.lowering.modules import KernelModule, StageModule, UnaryModule
from fxprune.lowering.parts import split_inputs
from fxprune.lowering.program import Program

_RUNS = 15
"""Runs of the whole graph that are timed node by node; the best of each node counts."""


class _Timer(fx.Interpreter):
    """Runs a lowered graph and notes the seconds of each node."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.kernels: list[float] = []
        self.operators: list[float] = []
        self.layers: dict[str, float] = {}

    def call_module(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, object]) -> object:
        module = self.fetch_attr(str(target))
        if isinstance(module, StageModule):
            return module(*args, **kwargs)
        if isinstance(module, ChainModule):
            for member, seconds in module.run_timed():
                self._note(member, seconds)
            return module.output
        if isinstance(module, KernelModule):
            result, seconds = module.run_timed(*cast("tuple[torch.Tensor, ...]", args))
            self._note(module, seconds)
            return result
        start = time.perf_counter()
        result = module(*args, **kwargs)
        self._note(module, time.perf_counter() - start)
        return result

    def _note(self, module: nn.Module, seconds: float) -> None:
        (self.kernels if isinstance(module, KernelModule | UnaryModule) else self.operators).append(seconds)
        if isinstance(module, KernelModule):
            self.layers[module.name] = seconds

    def call_function(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, object]) -> object:
        start = time.perf_counter()
        result = super().call_function(target, args, kwargs)
        self.operators.append(time.perf_counter() - start)
        return result


def profile(program: Program, inputs: Sequence[object]) -> dict[str, float]:
    """Measure where the time of a call goes.

    Args:
        program: The program.
        inputs: Flat inputs.

    Returns:
        Microseconds of a call in kernels (`kernels_us`), in torch's operators and dense layers (`torch_us`) and
        outside both (`outside_us`: glue, layout conversions, hand-over), and `share`, outside over the whole.
    """
    whole = time_calls([lambda: program.run(inputs)], rounds=_RUNS)[0]
    runs = [_run_timed(program, inputs) for _ in range(_RUNS)]
    parts = len(_split(program, inputs))
    kernels = _sum_of_best([timer.kernels for timer in runs]) * parts
    operators = _sum_of_best([timer.operators for timer in runs]) * parts
    outside = max(0.0, whole - kernels - operators)
    return {
        "whole_us": whole * 1e6,
        "kernels_us": kernels * 1e6,
        "torch_us": operators * 1e6,
        "outside_us": outside * 1e6,
        "share": outside / whole,
    }


def time_layers(program: Program, inputs: Sequence[object]) -> dict[str, float]:
    """Run once, the first micro-batch if there are several, and return the seconds of every layer that a kernel runs.

    Args:
        program: The program.
        inputs: Flat inputs.

    Returns:
        Seconds by the name of the layer's node in the graph that was lowered.
    """
    return _run_timed(program, inputs).layers


def _run_timed(program: Program, inputs: Sequence[object]) -> _Timer:
    timer = _Timer(program.graph_module)
    with torch.no_grad():
        timer.run(*_split(program, inputs)[0])
    return timer


def _split(program: Program, inputs: Sequence[object]) -> Sequence[Sequence[object]]:
    return [inputs] if program.images is None else split_inputs(inputs, program.images)


def _sum_of_best(runs: Sequence[Sequence[float]]) -> float:
    return float(sum(min(node) for node in zip(*runs, strict=True)))
