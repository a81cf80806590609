"""What no kernels can beat on a whole model: the bytes and multiply-adds that its masks leave, layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import nn

from benchmarks.gpu.layers import Kind, precision_of
from fxprune.codegen.cuda.costs import stream_us
from fxprune.codegen.cuda.target import CudaTarget
from fxprune.codegen.workload import CellType


def model_floors_us(
    model: nn.Module, masks: Mapping[str, torch.Tensor], x: torch.Tensor, kind: Kind, target: CudaTarget
) -> dict[str, float]:
    """Return the least times of all convolutions and linear layers, microseconds.

    Args:
        model: The model; it is not run on its device.
        masks: What is kept, by the name of the weight; other weights are whole.
        x: An input.
        kind: What is computed with.
        target: The GPU.

    Returns:
        "floor bytes": inputs, outputs and kept weights from memory once; "floor flops": kept multiply-adds at the peak;
        "floor all": the larger of both, layer by layer.
    """
    cells: CellType = "float32" if kind == "tf32" else kind
    peak = replace(target, precision=precision_of(kind)).peak_gflops(cells)
    found: list[tuple[float, float]] = []

    def note(weight: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            whole = module.get_parameter("weight")
            kept = int(masks[weight].sum()) if weight in masks else whole.numel()
            moved = (inputs[0].numel() + output.numel() + kept) * output.element_size()
            macs = kept * output.numel() // whole.shape[0]
            found.append((stream_us(moved, target), 2 * macs / peak / 1e3))

        return hook

    shadow = copy.deepcopy(model).to("meta")
    for name, module in shadow.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(note(f"{name}.weight"))
    with torch.no_grad():
        shadow(x.to("meta"))
    return {
        "floor bytes": sum(one for one, _ in found),
        "floor flops": sum(other for _, other in found),
        "floor all": sum(max(both) for both in found),
    }
