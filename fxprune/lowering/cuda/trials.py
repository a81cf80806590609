"""Layers timed on a GPU: kernels of several schedules in turns with torch's own layer, and their results compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from fxprune.codegen.cuda.device import Device
from fxprune.codegen.cuda.driver import Grid
from fxprune.codegen.cuda.kernel import CudaKernel, make_kernel
from fxprune.codegen.cuda.schedules import find_candidates, predict_dense_us
from fxprune.codegen.cuda.target import CudaTarget
from fxprune.codegen.cuda.tensor_tile import AnySchedule
from fxprune.codegen.workload import Layout, Workload
from fxprune.lowering.choice import Case
from fxprune.lowering.cuda.known import KnownOnGpu, candidate_text, workload_text
from fxprune.lowering.cuda.modules import CopyModule
from fxprune.lowering.cuda.plan import trial_workload
from fxprune.lowering.cuda.precision import float32_precision
from fxprune.lowering.dense import DenseLayer
from fxprune.lowering.geometry import buffer_view
from fxprune.lowering.layer_text import DENSE

OpenDevice = Callable[[Mapping[str, str]], Device]
"""Returns the GPU with the kernels of some TVMScript, by global symbol."""

_HOPELESS = 1.6
"""A layer whose best kernel is predicted to take so many times the dense layer's time is not tried when compiling."""

_TOLERANCE = {"float32": 1e-4, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference from torch's layer in the same type, as a share of the largest output: a kernel that is further
off is wrong."""


@dataclass(frozen=True, eq=False)
class TrialOnGpu:
    """A layer to be timed on its own.

    Attributes:
        workload: What layers like it have in common.
        case: The layer.
        work: Its workload.
        schedules: Kernels that can compute it, best prediction first.
    """

    workload: str
    case: Case
    work: Workload
    schedules: tuple[AnySchedule, ...]

    def scripts(self) -> dict[str, str]:
        """Return the TVMScript of every kernel by global symbol."""
        return write_scripts(self.kernels())

    def kernels(self) -> dict[str, CudaKernel]:
        """Pack the layer for every schedule."""
        case = self.case
        return {
            f"tile_{number}": make_kernel(self.work, schedule, case.weight, case.pattern, case.bias)
            for number, schedule in enumerate(self.schedules)
        }


def write_scripts(kernels: Mapping[str, CudaKernel]) -> dict[str, str]:
    """Return the TVMScript of kernels by global symbol."""
    return {name: kernel.script(name) for name, kernel in kernels.items()}


def find_trials(
    cases: Mapping[fx.Node, Case], target: CudaTarget, known: KnownOnGpu | None, most: int | None
) -> list[TrialOnGpu]:
    """Return what no record has yet, one trial for layers of one kind.

    Args:
        cases: The layers.
        target: The GPU.
        known: The records; None = everything is to be tried.
        most: Kernels of each layer that may gain, the likely better order of each tile; None = all, in both orders.
    """
    found: dict[str, TrialOnGpu] = {}
    for case in cases.values():
        workload = workload_text(case)
        if workload in found:
            continue
        work = trial_workload(case)
        candidates = find_candidates(work, case.pattern, target, every_order=most is None)[:most]
        if most is not None and candidates[0].predicted_us > _HOPELESS * predict_dense_us(work, target):
            continue
        recorded = {} if known is None else known.of(workload)
        missing = [one.schedule for one in candidates if candidate_text(one.schedule) not in recorded]
        if missing:
            found[workload] = TrialOnGpu(workload, case, work, tuple(missing))
    return list(found.values())


def measure_trial(trial: TrialOnGpu, target: CudaTarget, known: KnownOnGpu, open_device: OpenDevice) -> int:
    """Time a layer's kernels in turns with torch's own layer; what is wrong is recorded as one that cannot run.

    Args:
        trial: The layer.
        target: The GPU.
        known: Takes the times.
        open_device: Returns the GPU with the kernels.

    Returns:
        Number of kernels that cannot run.
    """
    kernels = trial.kernels()
    device = open_device(write_scripts(kernels))
    times: dict[str, float | None] = {}
    notes: dict[str, str] = {}
    with torch.no_grad(), float32_precision(target.precision):
        dense, x, residual = _draw(trial.case, device.torch_device)
        calls: dict[str, Callable[[], object]] = {DENSE: lambda: dense(x, residual)}
        wanted = dense(x, residual)
        for name, kernel in kernels.items():
            text = candidate_text(kernel.schedule)
            with device.running():
                call, output = _bind(device, name, kernel, trial.case, x, residual)
                call()
            note = _find_fault(output, wanted, trial.work, target)
            if note is None:
                calls[text] = call
            else:
                times[text], notes[text] = None, note
        with device.running():
            times.update(device.time(calls))
    known.add(trial.workload, times, notes)
    return len(notes)


def _draw(case: Case, device: torch.device) -> tuple[DenseLayer, torch.Tensor, torch.Tensor | None]:
    """Return torch's layer on a device, an input and a residual as the layer has them, channels-last."""
    layer, fake = case.layer, case.layer.input.meta["val"]
    weight = torch.from_numpy(case.weight).reshape(layer.weight_shape).to(fake.dtype)
    dense = DenseLayer(layer, weight, None if case.bias is None else torch.from_numpy(case.bias).to(fake.dtype))
    dense.move(device)
    generator = torch.Generator().manual_seed(0)

    def draw(shape: Sequence[int]) -> torch.Tensor:
        order = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        return torch.randn(tuple(shape), generator=generator).to(device, fake.dtype, memory_format=order)

    return dense, draw(fake.shape), None if layer.residual is None else draw(layer.output_shape)


def _bind(
    device: Device, name: str, kernel: CudaKernel, case: Case, x: torch.Tensor, residual: torch.Tensor | None
) -> tuple[Callable[[], None], torch.Tensor]:
    """Return a call of a kernel on buffers of its own, and its output, which is NaN before."""
    work, layer, place = kernel.work, case.layer, device.torch_device
    tensors = {key: torch.from_numpy(array).to(place) for key, array in kernel.arrays.items()}
    tensors["X"] = _fill(x, work.x, case)
    tensors["Y"] = torch.full((work.y.numel,), torch.nan, dtype=x.dtype, device=place)
    if residual is not None and work.residual is not None:
        tensors["RES"] = _fill(residual, work.residual, case)
    call = device.bind(name, Grid(kernel.grid, kernel.schedule.threads), tensors)
    return call, buffer_view(tensors["Y"], work.y, layer.dims, layer.output_shape)


def _fill(tensor: torch.Tensor, layout: Layout, case: Case) -> torch.Tensor:
    """Return a buffer that holds a tensor as a kernel reads it."""
    buffer = torch.zeros(layout.numel, dtype=tensor.dtype, device=tensor.device)
    copy = CopyModule(layout, case.layer.kind, case.layer.dims)
    copy.tie(buffer)
    copy(tensor)
    return buffer


def _find_fault(found: torch.Tensor, wanted: torch.Tensor, work: Workload, target: CudaTarget) -> str | None:
    """Say how far a kernel's result is off, or return None."""
    kind = "tf32" if work.x.cells == "float32" and target.precision == "tf32" else work.x.cells
    exact = wanted.double()
    error = float((found.double() - exact).abs().max() / exact.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
    if error <= _TOLERANCE[kind]:
        return None
    return f"its result is off by {error:.1e} of the largest output"
