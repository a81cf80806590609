"""Whole models compiled for a GPU and run on the twins of their kernels, against the masked model in float64."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils._pytree import tree_leaves, tree_map

import fxprune
from fxprune import CompiledModule, backend_cuda
from fxprune.errors import ArtifactError, UnsupportedError
from fxprune.lowering.cuda.lower import lower
from fxprune.lowering.cuda.program import CudaProgram
from tests.compiling import (
    TOLERANCE,
    Layers,
    Masks,
    cells,
    draw_masks,
    kernels,
    largest_difference,
    nothing,
    row_groups,
    run_masked,
    shuffled,
)
from tests.lowering.cuda.twin import TwinDevice, program_of, tie_to_twin
from tests.networks import Function, randomise_norms

pytestmark = pytest.mark.usefixtures("no_nvcc")

ARCH = {"kind": "cuda", "arch": "sm_90a"}


def compile_on_twin(model: nn.Module, masks: Mapping[str, torch.Tensor] | None, *inputs: object) -> CompiledModule:
    """Compile and tie to the twins; the inside of every buffer is NaN before the first run."""
    compiled = fxprune.compile(model, masks, ARCH, example_inputs=inputs)
    tie_to_twin(compiled)
    program = program_of(compiled)
    for buffer, layout in zip(program.buffers, program.parts.buffers, strict=True):
        size = (layout.batch, layout.channels, *layout.spatial)
        buffer.as_strided(size, layout.strides, layout.origin).fill_(torch.nan)
    return compiled


def check(model: nn.Module, masks: Mapping[str, torch.Tensor], *inputs: torch.Tensor) -> CompiledModule:
    """Compile, run on two inputs, compare with the masked model; the first result survives the second call."""
    compiled = compile_on_twin(model, masks, *inputs)
    first = compiled(*inputs)
    kept = tree_map(torch.clone, first)
    others = tuple(value + 1 for value in inputs)
    second = compiled(*others)
    assert all(torch.equal(ours, before) for ours, before in zip(tree_leaves(first), tree_leaves(kept), strict=True))
    assert largest_difference(first, run_masked(model, masks, *inputs)) <= TOLERANCE, str(compiled.report)
    assert largest_difference(second, run_masked(model, masks, *others)) <= TOLERANCE
    return compiled


def _forward_chain(net: Layers, x: torch.Tensor) -> torch.Tensor:
    y = F.relu(net.norm(net.first(x)))
    y = F.max_pool2d(y, 2)
    y = F.silu(net.second(y))
    return net.head(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1))


def chain() -> nn.Module:
    layers = {
        "first": nn.Conv2d(3, 20, 3, padding=1, bias=False),
        "norm": nn.BatchNorm2d(20),
        "second": nn.Conv2d(20, 33, 5, stride=2, padding=2),
        "head": nn.Linear(33, 11),
    }
    return randomise_norms(Function(_forward_chain, **layers).eval())


def _forward_residual(net: Layers, x: torch.Tensor) -> torch.Tensor:
    y = F.relu(net.first(x))
    y = F.relu(net.inner(y) + y)
    z = F.relu(net.wide(y)) + net.point(y)
    return F.relu(net.last(z) + F.max_pool2d(x, 3, 1, 1).mean(1, keepdim=True).expand(-1, 24, -1, -1))


def residual() -> nn.Module:
    layers: dict[str, nn.Module] = {
        "first": nn.Conv2d(4, 24, 3, padding=1),
        "inner": nn.Conv2d(24, 24, 3, padding=1),
        "wide": nn.Conv2d(24, 24, 5, padding=2),
        "point": nn.Conv2d(24, 24, 1),
        "last": nn.Conv2d(24, 24, 3, padding=1, groups=2),
    }
    return Function(_forward_residual, **layers).eval()


def _forward_many(net: Layers, x: torch.Tensor) -> dict[str, torch.Tensor]:
    y = net.first(x)
    z = net.depthwise(y)
    both = torch.cat([net.third(z), y[:, :, :6, :7]], 1)
    return {"inside": y, "out": net.up(net.fourth(both)), "view": y.permute(0, 2, 3, 1)}


def many_outputs() -> nn.Module:
    layers: dict[str, nn.Module] = {
        "first": nn.Conv2d(4, 12, (1, 3), padding=(0, 1)),
        "depthwise": nn.Conv2d(12, 12, 3, padding=1, groups=12),
        "third": nn.Conv2d(12, 9, 3, dilation=2, padding=(0, 1)),
        "fourth": nn.Conv2d(21, 10, 1, stride=2),
        "up": nn.ConvTranspose2d(10, 5, 2),
    }
    return Function(_forward_many, **layers).eval()


def _forward_tokens(net: Layers, x: torch.Tensor) -> torch.Tensor:
    y = F.gelu(net.first(x))
    return net.second(y) + x


def tokens() -> nn.Module:
    return Function(_forward_tokens, first=nn.Linear(17, 40), second=nn.Linear(40, 17)).eval()


_IMAGE = (10, 9)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "chain": (chain, (2, 3, *_IMAGE)),
    "chain, batch 4": (chain, (4, 3, *_IMAGE)),
    "residual": (residual, (1, 4, *_IMAGE)),
    "residual, batch 3": (residual, (3, 4, *_IMAGE)),
    "residual, batch 8": (residual, (8, 4, *_IMAGE)),
    "many outputs": (many_outputs, (2, 4, *_IMAGE)),
    "tokens": (tokens, (2, 5, 17)),
    "one token": (tokens, (17,)),
    "one image": (lambda: nn.Sequential(nn.Conv2d(3, 18, 3), nn.ReLU6()).eval(), (3, *_IMAGE)),
    "one axis": (lambda: nn.Sequential(nn.Conv1d(3, 18, 5, padding=2), nn.Conv1d(18, 7, 1)).eval(), (2, 3, 19)),
    "three axes": (lambda: nn.Sequential(nn.Conv3d(3, 18, 3, padding=1), nn.ReLU()).eval(), (2, 3, 4, 5, 6)),
}


@pytest.mark.usefixtures("all_kernels")
@pytest.mark.parametrize("name", MODELS)
def test_a_program_computes_what_the_masked_model_does(name: str) -> None:
    make, shape = MODELS[name]
    model = make()
    masks = draw_masks(model, row_groups(16, 0.4), shuffled(row_groups(8, 0.4)), cells(0.3))
    compiled = check(model, masks, torch.randn(shape))
    assert len(kernels(compiled)) >= 2 - (name in ("one image", "three axes"))


@pytest.mark.usefixtures("all_kernels")
def test_layers_without_any_weight_give_their_bias() -> None:
    model = chain()
    check(model, draw_masks(model, row_groups(16, 0.4), nothing, nothing), torch.randn(2, 3, *_IMAGE))


@pytest.mark.usefixtures("all_kernels")
def test_tensors_of_one_layout_take_turns_and_halos_stay_zero() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(7))).eval()
    masks = draw_masks(model, row_groups(8, 0.5))
    compiled = check(model, masks, torch.randn(2, 8, 6, 6))
    program = program_of(compiled)
    assert len(program.parts.steps) == 7
    assert len(program.buffers) == 3, "two with a halo in turn, and the output's"
    for buffer, layout in zip(program.buffers, program.parts.buffers, strict=True):
        outside = buffer.clone()
        outside.as_strided((layout.batch, layout.channels, *layout.spatial), layout.strides, layout.origin).zero_()
        assert not outside.any()


@pytest.mark.usefixtures("all_kernels")
def test_only_the_edges_are_copied() -> None:
    """Between kernels no tensor is copied; what torch reads it sees as a view."""
    compiled = fxprune.compile(residual(), None, ARCH, example_inputs=torch.randn(1, 4, *_IMAGE))
    program = program_of(compiled)
    assert len(program.parts.steps) == 5
    assert len(program.parts.copies) == 2, "the input, and the residual that torch makes"


def _forward_pools(net: Layers, x: torch.Tensor) -> torch.Tensor:
    y = F.relu(net.first(x))
    y = F.avg_pool2d(F.max_pool2d(y, 3, 2, 1), 2, ceil_mode=True)
    return F.adaptive_avg_pool2d(net.second(y), 2) + F.max_pool2d(net.third(y), 2)[..., :1, :1]


@pytest.mark.usefixtures("all_kernels")
@pytest.mark.parametrize("batch", [1, 3])
def test_pools_between_kernels_read_them_channels_last(batch: int) -> None:
    layers = {"first": nn.Conv2d(3, 20, 3, padding=1), "second": nn.Conv2d(20, 9, 1), "third": nn.Conv2d(20, 9, 1)}
    model = Function(_forward_pools, **layers).eval()
    compiled = check(model, draw_masks(model, row_groups(16, 0.5)), torch.randn(batch, 3, 17, 19))
    graph = program_of(compiled).graph_module
    orders: list[bool] = []

    class Watch(fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            if "pool" in str(target):
                orders.append(args[0].is_contiguous(memory_format=torch.channels_last))
            return super().call_function(target, args, kwargs)

    Watch(graph).run(torch.randn(batch, 3, 17, 19))
    assert orders == [True] * 4


@pytest.mark.usefixtures("all_kernels")
def test_one_text_serves_layers_of_one_shape() -> None:
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))).eval()
    compiled = fxprune.compile(
        model, draw_masks(model, row_groups(8, 0.5)), ARCH, example_inputs=torch.randn(2, 8, 6, 6)
    )
    steps = program_of(compiled).parts.steps
    assert [step.function for step in steps] == ["layer_0", "layer_0", "layer_0", "layer_1"]


@pytest.mark.usefixtures("all_kernels")
def test_launches_cover_every_block_and_tile() -> None:
    model = nn.Conv2d(8, 70, 3, padding=1).eval()
    masks: Masks = draw_masks(model, row_groups(16, 0.5))
    compiled = fxprune.compile(model, masks, ARCH, example_inputs=torch.randn(4, 8, 9, 9))
    device: TwinDevice = tie_to_twin(compiled)
    compiled(torch.randn(4, 8, 9, 9))
    ((_, grid),) = device.launches
    (step,) = program_of(compiled).parts.steps
    tiles = -(-4 * 81 // step.kernel.schedule.pixels)
    assert sorted(grid.blocks) == sorted((1, tiles, step.kernel.table.blocks))
    assert grid.threads == step.kernel.schedule.threads


@pytest.mark.usefixtures("all_kernels")
def test_calls_from_several_threads_take_turns() -> None:
    model = chain()
    masks = draw_masks(model, row_groups(16, 0.4))
    x = torch.randn(2, 3, *_IMAGE)
    compiled = compile_on_twin(model, masks, x)
    inputs = [x + index for index in range(6)]
    results: dict[int, torch.Tensor] = {}

    def run(index: int) -> None:
        results[index] = compiled(inputs[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, value in enumerate(inputs):
        assert largest_difference(results[index], run_masked(model, masks, value)) <= TOLERANCE


@pytest.mark.usefixtures("all_kernels")
def test_inference_mode_changes_nothing() -> None:
    model = chain()
    masks = draw_masks(model, row_groups(16, 0.4))
    x = torch.randn(2, 3, *_IMAGE)
    compiled = compile_on_twin(model, masks, x)
    with torch.inference_mode():
        first = compiled(x)
    assert torch.equal(first, compiled(x))


def test_operators_that_make_tensors_make_them_on_the_device() -> None:
    def forward(net: Layers, x: torch.Tensor) -> torch.Tensor:
        y = net.layer(x)
        return y + torch.arange(y.shape[-1], dtype=y.dtype, device=y.device) * x.new_ones(1)

    model = Function(forward, layer=nn.Linear(4, 6)).eval()
    compiled = fxprune.compile(model, None, ARCH, example_inputs=torch.randn(3, 4))
    program = program_of(compiled)
    tie_to_twin(compiled)

    class Meta(TwinDevice):
        def __init__(self) -> None:
            super().__init__(program)
            self.torch_device = torch.device("meta")

    program.tie(Meta())
    devices = {tensor.device.type for tensor in [*program.graph_module.buffers(), *program.graph_module.parameters()]}
    named = {value for node in program.graph_module.graph.nodes for value in tree_leaves((node.args, dict(node.kwargs)))
             if isinstance(value, torch.device)}  # fmt: skip
    assert devices | {device.type for device in named} <= {"meta"}


def test_without_a_gpu_a_call_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    compiled = fxprune.compile(chain(), None, ARCH, example_inputs=torch.randn(2, 3, *_IMAGE))
    with pytest.raises(UnsupportedError, match=r"compiled for a GPU \(sm_90a\) and cannot run here: .*target='cpu'"):
        compiled(torch.randn(2, 3, *_IMAGE))


def test_an_input_elsewhere_is_named() -> None:
    x = torch.randn(2, 3, *_IMAGE)
    compiled = compile_on_twin(chain(), None, x)
    with pytest.raises(UnsupportedError, match=r"Input 0 is on meta, the compiled model runs on cpu\. Pass x\.to"):
        compiled(x.to("meta"))


@pytest.mark.usefixtures("all_kernels")
def test_a_program_is_made_again_from_its_recipe_and_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[fx.GraphModule] = []

    def lower_and_keep(gm: fx.GraphModule, *rest: Any, **options: Any) -> CudaProgram:
        kept.append(gm)
        return lower(gm, *rest, **options)

    monkeypatch.setattr("fxprune.backend_cuda.lower", lower_and_keep)
    model, x = chain(), torch.randn(2, 3, *_IMAGE)
    masks = draw_masks(model, row_groups(16, 0.4))
    compiled = compile_on_twin(model, masks, x)
    program = program_of(compiled)
    assert program.library is not None
    recipe = json.loads(json.dumps(program.recipe))
    again = backend_cuda.restore(kept[0], recipe, program.library.binary)
    assert again.recipe == program.recipe
    again.tie(TwinDevice(again))
    (found,) = again.run([x])
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found, compiled(x))
    recipe["functions"] = {name: digest[::-1] for name, digest in recipe["functions"].items()}
    with pytest.raises(ArtifactError, match="are not those that this version of fxprune makes"):
        backend_cuda.restore(kept[0], recipe, program.library.binary)
