"""Whole models on a GPU against the masked model in float64."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_map

import fxprune
from fxprune.codegen.cuda.cache import CACHE_VARIABLE
from fxprune.codegen.cuda.target import Precision
from fxprune.errors import UnsupportedError
from fxprune.lowering.cuda.precision import float32_precision
from tests.compiling import TOLERANCE, Masks, draw_masks, kernels, largest_difference, row_groups, run_masked
from tests.lowering.cuda.test_program import MODELS
from tests.lowering.cuda.test_tensor_program import MORE_THAN_DENSE, draw_model
from tests.lowering.cuda.twin import program_of
from tests.networks import apply_masks, randomise_norms

torchvision = pytest.importorskip("torchvision")


TUNED = "chain, batch 4"
"""The network whose every kernel is measured."""

KERNELS: dict[str, object] = {"measure": False}
"""No small model gains; its kernels are to run all the same."""

KINDS: tuple[tuple[torch.dtype, Precision], ...] = (
    (torch.float32, "ieee"), (torch.float32, "tf32"), (torch.bfloat16, "ieee"), (torch.float16, "ieee")
)  # fmt: skip


@pytest.mark.usefixtures("all_kernels")
@pytest.mark.parametrize(("kind", "precision"), KINDS, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_a_program_computes_what_the_masked_model_does(
    gpu: torch.device, name: str, kind: torch.dtype, precision: Precision
) -> None:
    model, masks, x = draw_model(name, kind)
    compiled = fxprune.compile(model, masks, "cuda", example_inputs=x, options=KERNELS | {"precision": precision})
    dense = apply_masks(copy.deepcopy(model), masks).to(gpu)
    is_strict = kind is torch.float32 and precision == "ieee"
    for value in (x, x + 1, x.flip(-1)):
        wanted = run_masked(model, masks, value)
        with torch.no_grad(), float32_precision(precision):
            theirs = largest_difference(tree_map(torch.Tensor.cpu, dense(value.to(gpu))), wanted)
        ours = largest_difference(tree_map(torch.Tensor.cpu, compiled(value.to(gpu))), wanted)
        assert ours <= (TOLERANCE if is_strict else MORE_THAN_DENSE * theirs)


def draw_resnet18() -> tuple[torch.nn.Module, Masks, torch.Tensor]:
    """Return a ResNet-18 with masks and a batch."""
    torch.manual_seed(0)
    model = randomise_norms(torchvision.models.resnet18(weights=None).eval())
    return model, draw_masks(model, row_groups(32, 0.2)), torch.randn(32, 3, 224, 224)


def test_resnet18_of_a_batch(gpu: torch.device) -> None:
    model, masks, x = draw_resnet18()
    compiled = fxprune.compile(model.to(gpu), masks, "cuda", example_inputs=x.to(gpu), options=KERNELS)
    assert kernels(compiled)
    wanted = run_masked(model, {name: mask.to(gpu) for name, mask in masks.items()}, x.to(gpu))
    assert largest_difference(compiled(x.to(gpu)), wanted) <= TOLERANCE


def test_the_first_run_decides_by_times(gpu: torch.device) -> None:
    model = MODELS["chain"][0]()
    x = torch.randn(MODELS["chain"][1])
    masks = draw_masks(model, row_groups(16, 0.4))
    compiled = fxprune.compile(model, masks, "cuda", example_inputs=x)
    for _ in range(4):
        assert largest_difference(compiled(x.to(gpu)).cpu(), run_masked(model, masks, x)) <= TOLERANCE
    said = compiled.report.whole_model
    assert torch.cuda.get_device_name(gpu) in said or not kernels(compiled), said


def test_every_kernel_of_a_layer_is_right_and_timed(gpu: torch.device, tmp_path: Path) -> None:
    """What `prepare` built is measured without a compiler."""
    if not os.environ.get(CACHE_VARIABLE):
        pytest.skip(f"{CACHE_VARIABLE} does not name the folder that `make gpu-prepare` filled")
    database = tmp_path / "records.jsonl"
    for kind, precision in KINDS:
        model, masks, x = draw_model(TUNED, kind)
        options = {"precision": precision}
        found = fxprune.tune(model, masks, "cuda", example_inputs=x, database=database, only="measure", options=options)
        assert found.done == found.total > 0
        assert found.failed == 0, database.read_text()
    lines = [json.loads(line) for line in database.read_text().splitlines()]
    assert {line["context"]["device"] for line in lines} == {torch.cuda.get_device_name(gpu)}


def test_another_stream_is_the_one_that_runs(gpu: torch.device) -> None:
    model = MODELS["chain"][0]()
    x = torch.randn(MODELS["chain"][1])
    compiled = fxprune.compile(model, None, "cuda", example_inputs=x, options=KERNELS)
    stream = torch.cuda.Stream(gpu)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        found = compiled(x.to(gpu))
    stream.synchronize()
    assert largest_difference(found.cpu(), run_masked(model, {}, x)) <= TOLERANCE


def test_runs_on_two_streams_do_not_meet(gpu: torch.device) -> None:
    """They share the program's buffers; the second waits for the first though the streams do not."""
    model = MODELS["chain"][0]()
    x = torch.randn(MODELS["chain"][1])
    masks = draw_masks(model, row_groups(16, 0.4))
    compiled = fxprune.compile(model, masks, "cuda", example_inputs=x, options=KERNELS)
    streams = [torch.cuda.Stream(gpu) for _ in range(2)]  # type: ignore[no-untyped-call]
    inputs = [(x + number).to(gpu) for number in range(20)]
    torch.cuda.synchronize(gpu)
    found = []
    for number, value in enumerate(inputs):
        with torch.cuda.stream(streams[number % 2]):
            found.append(compiled(value))
    torch.cuda.synchronize(gpu)
    for value, output in zip(inputs, found, strict=True):
        assert largest_difference(output.cpu(), run_masked(model, masks, value.cpu())) <= TOLERANCE


@pytest.mark.usefixtures("all_kernels")
@pytest.mark.parametrize("name", MODELS)
def test_runs_become_replays_of_a_cuda_graph(gpu: torch.device, name: str) -> None:
    model, masks, x = draw_model(name, torch.float32)
    compiled = fxprune.compile(model, masks, "cuda", example_inputs=x, options=KERNELS)
    for number in range(5):
        found = tree_map(torch.Tensor.cpu, compiled((x + number).to(gpu)))
        assert largest_difference(found, run_masked(model, masks, x + number)) <= TOLERANCE
    recording = program_of(compiled).recording
    assert recording is not None
    assert recording.is_replayed, recording.reason


def test_a_cuda_graph_holds_a_whole_run(gpu: torch.device) -> None:
    model = MODELS["chain"][0]()
    x = torch.randn(MODELS["chain"][1])
    masks = draw_masks(model, row_groups(16, 0.4))
    compiled = fxprune.compile(model, masks, "cuda", example_inputs=x, options=KERNELS)
    fixed = x.to(gpu)
    compiled(fixed)
    torch.cuda.synchronize(gpu)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = compiled(fixed)
    fixed.copy_(x + 1)
    graph.replay()
    torch.cuda.synchronize(gpu)
    assert largest_difference(found.cpu(), run_masked(model, masks, x + 1)) <= TOLERANCE


def test_an_input_on_the_cpu_is_named(gpu: torch.device) -> None:
    model = MODELS["chain"][0]()
    x = torch.randn(MODELS["chain"][1])
    compiled = fxprune.compile(model, None, "cuda", example_inputs=x, options=KERNELS)
    with pytest.raises(UnsupportedError, match=rf"Input 0 is on cpu, the compiled model runs on {gpu}"):
        compiled(x)
