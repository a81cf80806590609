"""What is timed: fxprune's kernels for a layer beside torch's dense convolutions, whole models beside torch's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

import fxprune
from benchmarks.gpu.floors import model_floors_us
from benchmarks.gpu.layers import TYPES, Kind, LayerCase, draw_input, precision_of
from benchmarks.masks import apply_masks, make_masks
from benchmarks.models import IMAGE_SIZE, build_model
from fxprune.codegen.cuda.cache import open_library
from fxprune.codegen.cuda.device import Gpu
from fxprune.codegen.cuda.driver import Grid
from fxprune.codegen.cuda.fragments import round_tf32
from fxprune.codegen.cuda.kernel import CudaKernel
from fxprune.codegen.cuda.target import CudaTarget
from fxprune.codegen.cuda.timing import time_interleaved
from fxprune.lowering.cuda.precision import float32_precision

TOLERANCE: dict[torch.dtype, float] = {torch.float32: 1e-5, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
"""Largest difference of a layer from float64, as a share of the largest output; in 16 bits twice one rounding."""

_MORE_THAN_DENSE = 1.25
"""Largest error of a model in 16 bits, as a multiple of dense torch's in the same type."""

SHORT: dict[Kind, str] = {"float32": "fp32", "tf32": "tf32", "float16": "fp16", "bfloat16": "bf16"}
"""Names of the kinds in the tables."""


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        label: What was measured.
        kind: What it was computed with; peers of the same kind count.
        times_us: Median microseconds by engine.
        facts: Floors, predictions, errors.
        note: What fxprune says of it.
    """

    label: str
    kind: Kind
    times_us: Mapping[str, float]
    facts: Mapping[str, float]
    note: str = ""


def _with_precision(call: Callable[[], object], kind: Kind) -> Callable[[], object]:
    def run() -> object:
        with float32_precision(precision_of(kind)), torch.no_grad():
            return call()

    return run


def _as_multiplied(tensor: torch.Tensor, kind: Kind) -> torch.Tensor:
    """Return what a layer multiplies, in float64."""
    if kind == "tf32":
        tensor = torch.from_numpy(round_tf32(tensor.cpu().contiguous().numpy())).to(tensor.device)
    return tensor.double()


def layer_scripts(case: LayerCase, target: CudaTarget, count: int) -> dict[str, str]:
    """Return the texts of a layer's kernels by global symbol."""
    kernels = [kernel for kernel, _ in case.kernels(target, count)]
    return {f"tile_{number}": kernel.script(f"tile_{number}") for number, kernel in enumerate(kernels)}


def measure_layer(case: LayerCase, target: CudaTarget, device: torch.device, count: int) -> Row:
    """Check and time one layer.

    Args:
        case: The layer.
        target: The GPU's architecture.
        device: The GPU.
        count: Kernels to time.

    Raises:
        AssertionError: A kernel's result is wrong.
    """
    kernels = case.kernels(target, count)
    gpu = Gpu(open_library(layer_scripts(case, target, count), target.arch), device)
    x = draw_input(case, device)
    weight = torch.from_numpy(case.weight()).reshape(case.shape.channels_out, -1, *case.shape.kernel[1:])
    weight, bias = weight.to(device, case.type), case.bias().to(device)
    stride, padding = case.shape.stride[1:], tuple(low for low, _ in case.shape.padding[1:])
    exact_x, exact_weight = (_as_multiplied(tensor, case.kind) for tensor in (x, weight))
    wanted = F.relu(F.conv2d(exact_x, exact_weight, bias.double(), stride, padding))
    calls: dict[str, Callable[[], object]] = {}
    errors: dict[str, float] = {}
    for number, (kernel, _) in enumerate(kernels):
        name = str(kernel.schedule)
        with gpu.running():
            calls[name], y = _bind(gpu, f"tile_{number}", kernel, x)
            calls[name]()
        errors[name] = float((y.double() - wanted).abs().max() / wanted.abs().max())
        assert errors[name] <= TOLERANCE[case.type], f"{case.label}: {name} is off by {errors[name]}"
    channels_last = weight.contiguous(memory_format=torch.channels_last)

    def dense() -> torch.Tensor:
        return F.relu_(F.conv2d(x, channels_last, bias, stride, padding))

    calls[f"dense {SHORT[case.kind]}"] = _with_precision(dense, case.kind)
    if case.kind == "float32":
        calls["dense tf32"] = _with_precision(dense, "tf32")
    facts = {f"floor {name}": value for name, value in case.floors_us(target).items()}
    facts |= {"predicted": kernels[0][1], "largest error": max(errors.values())}
    return Row(case.label, case.kind, time_interleaved(calls), facts)


def _bind(gpu: Gpu, name: str, kernel: CudaKernel, x: torch.Tensor) -> tuple[Callable[[], None], torch.Tensor]:
    """Return a call of a kernel and a view of its output, which is NaN before the first call."""
    work, device = kernel.work, gpu.torch_device
    arguments = {key: torch.from_numpy(array).to(device) for key, array in kernel.arrays.items()}
    buffers = {}
    for key, layout in (("X", work.x), ("Y", work.y)):
        arguments[key] = torch.zeros(layout.numel, dtype=TYPES[layout.cells], device=device)
        size = (layout.batch, layout.channels, *layout.spatial)
        buffers[key] = arguments[key].as_strided(size, layout.strides, layout.origin)[:, :, 0]
    buffers["X"].copy_(x)
    buffers["Y"].fill_(torch.nan)
    return gpu.bind(name, Grid(kernel.grid, kernel.schedule.threads), arguments), buffers["Y"]


@dataclass(frozen=True)
class ModelCase:
    """One model at one sparsity.

    Attributes:
        name: As in `benchmarks.models`.
        batch: Images.
        sparsity: Share of the weights that is pruned.
        rows: Height of the row groups.
        kind: What it is computed with.
        image: Height and width of its images.
    """

    name: str
    batch: int
    sparsity: float
    rows: int
    kind: Kind
    image: int = IMAGE_SIZE

    @property
    def label(self) -> str:
        """One line for the table."""
        size = f"{self.image}x{self.image}"
        return f"{self.name}, {size}, {self.kind}, batch {self.batch}, sparsity {self.sparsity}, groups of {self.rows}"

    def draw(self) -> tuple[nn.Module, dict[str, torch.Tensor], torch.Tensor]:
        """Return the model, its masks and an input; the same case gives the same ones."""
        model, dtype = build_model(self.name, image=self.image), TYPES[self.kind]
        masks = make_masks(model, "rowgroup", self.sparsity, 0, rows=self.rows)
        x = torch.randn(self.batch, 3, self.image, self.image, generator=torch.Generator().manual_seed(0))
        return model.to(dtype), masks, x.to(dtype)

    @property
    def options(self) -> dict[str, object]:
        """The options of `compile`."""
        return {"precision": precision_of(self.kind)}


def measure_model(case: ModelCase, target: CudaTarget, device: torch.device) -> Row:
    """Check and time one model.

    Args:
        case: The model.
        target: The GPU's architecture.
        device: The GPU.

    Raises:
        AssertionError: The compiled model's result is wrong.
    """
    model, masks, x = case.draw()
    facts = model_floors_us(model, masks, x, case.kind, target)
    compiled = fxprune.compile(model, masks, "cuda", example_inputs=x, options=case.options)
    dense = apply_masks(model, masks).to(device).to(memory_format=torch.channels_last)
    x = x.to(device, memory_format=torch.channels_last)
    with torch.no_grad(), float32_precision(precision_of(case.kind)):
        wanted = apply_masks(model, masks).to(device).double()(x[:8].double())
        found = compiled(x)
        assert isinstance(found, torch.Tensor)
        errors = [float((y[:8].double() - wanted).abs().max() / wanted.abs().max()) for y in (found, dense(x))]
        allowed = 10 * TOLERANCE[x.dtype] if case.kind == "float32" else _MORE_THAN_DENSE * errors[1]
        assert errors[0] <= allowed, f"{case.label}: off by {errors[0]}, dense torch by {errors[1]}"
    tuned: Callable[[torch.Tensor], object] = torch.compile(dense, mode="max-autotune")
    short = SHORT[case.kind]
    calls = {
        f"fxprune {short}": _with_precision(lambda: compiled(x), case.kind),
        f"eager {short}": _with_precision(lambda: dense(x), case.kind),
        f"torch.compile {short}": _with_precision(lambda: tuned(x), case.kind),
    }
    if case.kind == "float32":
        calls["eager tf32"] = _with_precision(lambda: dense(x), "tf32")
    facts |= {"largest error": errors[0], "error of dense": errors[1]}
    times = time_interleaved(calls)
    return Row(case.label, case.kind, times, facts, compiled.report.whole_model)
