"""What `compile` takes and what it returns: inputs, outputs, shapes, threads, masks, reports, dumps."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import symbolic_trace
from torch.nn.utils import prune

import fxprune
from fxprune import CompiledModule
from tests.compiling import (
    QUICK,
    TOLERANCE,
    Layers,
    Masks,
    check,
    draw_masks,
    force_kernels,
    kernels,
    largest_difference,
    row_groups,
    run_masked,
)
from tests.networks import Function, apply_masks, randomise_norms


@pytest.fixture(autouse=True)
def _kernels_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    force_kernels(monkeypatch, "rows")


class Net(nn.Module):
    """A stem, a residual convolution, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.conv = nn.Conv2d(32, 32, 3, padding=1)
        self.classifier = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify [N, 3, H, W]."""
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.conv(x) + x)
        return cast("torch.Tensor", self.classifier(x.mean((2, 3))))


def net() -> nn.Module:
    return randomise_norms(Net()).eval()


def some_masks(model: nn.Module) -> Masks:
    return draw_masks(model, row_groups(16))


X = torch.linspace(-2, 2, 2 * 3 * 12 * 12).sin().reshape(2, 3, 12, 12)


def agrees(compiled: CompiledModule, model: nn.Module, masks: Masks, *inputs: object, **options: object) -> bool:
    found = compiled(*inputs, **options)
    return largest_difference(found, run_masked(model, masks, *inputs, **options)) <= TOLERANCE


def count_compilations(compiled: CompiledModule, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by one item with every compilation."""
    made: list[int] = []
    inner = compiled._compile_for

    def compile_for(*arguments: object) -> object:
        made.append(1)
        return inner(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(compiled, "_compile_for", compile_for)
    return made


def test_other_shapes_compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    masks = some_masks(model)
    compiled = fxprune.compile(model, masks, options=QUICK)
    made = count_compilations(compiled, monkeypatch)
    for x in (X, X[:1], X, X[..., :9], torch.cat([X, X]), X[:1]):
        assert agrees(compiled, model, masks, x)
    assert len(made) == 4
    assert compiled.report.input_shapes == ((4, 3, 12, 12),)


def test_any_strides_and_offsets_of_an_input() -> None:
    model = net()
    masks = some_masks(model)
    compiled = fxprune.compile(model, masks, example_inputs=X, options=QUICK)
    storage = torch.zeros(2 * 3 * 12 * 12 + 1)
    views = (
        X.contiguous(memory_format=torch.channels_last),
        X.transpose(2, 3),
        X[:, :1].expand(2, 3, 12, 12),
        storage[1:].view(2, 3, 12, 12).copy_(X),
    )
    assert all(agrees(compiled, model, masks, x) for x in views)


def test_threads_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    compiled = fxprune.compile(model, some_masks(model), options=QUICK)
    made = count_compilations(compiled, monkeypatch)
    inputs = [X * (number + 1) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: compiled(inputs[number % 4]), range(40)))
    assert len(made) == 1
    assert all(torch.equal(result, compiled(inputs[number % 4])) for number, result in enumerate(found))


def test_modes_of_torch_do_not_reach_the_model() -> None:
    model = net()
    masks = some_masks(model)
    with torch.inference_mode():
        compiled = fxprune.compile(model, masks, options=QUICK)
        assert agrees(compiled, model, masks, X)
    with torch.autocast("cpu"):
        found = compiled(X)
    assert found.dtype == torch.float32
    assert agrees(compiled, model, masks, X)
    with torch.autocast("cpu"):
        compiled = fxprune.compile(model, masks, example_inputs=X, options=QUICK)
    assert agrees(compiled, model, masks, X)


def test_the_model_is_not_changed() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    masks = some_masks(model)
    given = {name: mask.clone() for name, mask in masks.items()}
    fxprune.compile(model, masks, example_inputs=X, options=QUICK)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(given[name], mask) for name, mask in masks.items())
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_zeros_are_the_mask_when_none_is_given() -> None:
    model = net()
    masks = some_masks(model)
    apply_masks(model, masks)
    compiled = fxprune.compile(model, None, example_inputs=X, options=QUICK)
    assert agrees(compiled, model, masks, X)
    assert torch.equal(compiled.masks["conv.weight"], masks["conv.weight"])


def test_hooks_of_torch_prune_are_the_mask() -> None:
    model = net()
    conv = model.get_submodule("conv")
    prune.ln_structured(conv, "weight", 0.5, n=2, dim=0)
    with torch.no_grad():
        expected = model(X)
    compiled = fxprune.compile(model, example_inputs=X, options=QUICK)
    assert largest_difference(compiled(X), expected) <= TOLERANCE
    assert torch.equal(compiled.masks["conv.weight"], conv.get_buffer("weight_mask").bool())
    assert hasattr(conv, "weight_orig")


@pytest.mark.parametrize("kind", ["exported program", "graph module", "traced"])
def test_other_kinds_of_model(kind: str) -> None:
    model = net()
    masks = some_masks(model)
    program = torch.export.export(model, (X,))
    given: dict[str, nn.Module | ExportedProgram] = {
        "exported program": program,
        "graph module": program.module(),
        "traced": symbolic_trace(model),
    }
    compiled = fxprune.compile(given[kind], masks, example_inputs=X, options=QUICK)
    assert agrees(compiled, model, masks, X)
    assert "conv" in str(kernels(compiled))


def test_float64_runs_dense_and_says_why() -> None:
    model = net().double()
    masks = some_masks(model)
    compiled = fxprune.compile(model, masks, example_inputs=X.double(), options=QUICK)
    assert largest_difference(compiled(X.double()), run_masked(model, masks, X.double())) <= 1e-14
    assert kernels(compiled) == []
    assert "float64" in str(compiled.report)


class Structured(nn.Module):
    """Several inputs, a keyword, a switch; nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 32, 3, padding=1)
        self.right = nn.Conv2d(4, 32, 1)

    def forward(
        self, pair: dict[str, torch.Tensor], scale: torch.Tensor, *, add: bool = True, times: float = 1.0
    ) -> dict[str, object]:
        """Return the sum, its parts, and the input."""
        left, right = self.left(pair["left"]), self.right(pair["right"])
        both = left + right if add else left - right
        return {"sum": torch.relu(both * scale) * times, "parts": [left, (right, None)], "input": pair["left"] + 0}


def test_structured_inputs_and_outputs() -> None:
    model = Structured().eval()
    masks = some_masks(model)
    compiled = fxprune.compile(model, masks, options=QUICK)
    arguments = ({"left": X, "right": X.mean(1, keepdim=True).expand(2, 4, 12, 12)}, torch.tensor(0.5))
    for options in ({}, {"add": False}, {"add": False, "times": 3.0}):
        assert agrees(compiled, model, masks, *arguments, **options)
    found = compiled(*arguments)
    assert list(found) == ["sum", "parts", "input"]
    assert isinstance(found["parts"][1], tuple)
    assert found["parts"][1][1] is None


def test_outputs_own_their_memory() -> None:
    def forward(net: Layers, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first = net.first(x)
        return first, first[:, 2:5], net.second(torch.relu(first)).flatten(1), first.permute(0, 2, 3, 1)

    model = Function(forward, first=nn.Conv2d(3, 32, 3), second=nn.Conv2d(32, 32, 3)).eval()
    compiled = check(model, some_masks(model), X)
    found = compiled(X)
    again = compiled(X)
    for tensor in found:
        tensor.fill_(7)
    assert largest_difference(compiled(X), again) == 0


def test_attributes() -> None:
    model = net()
    masks = some_masks(model)
    compiled = fxprune.compile(model, masks, example_inputs=X, options={**QUICK, "threads": 1})
    assert isinstance(compiled, nn.Module)
    assert not compiled.training
    assert compiled.eval() is compiled
    assert [layer.name for layer in compiled.report.layers] == ["stem", "conv", "classifier"]
    assert compiled.report.threads == 1
    assert compiled.report.totals()
    assert str(compiled.report).startswith("exact")
    assert "| conv" in compiled.report.to_markdown()
    assert {name: mask.dtype for name, mask in compiled.masks.items()} == dict.fromkeys(masks, torch.bool)
    assert any(node.op == "call_module" for node in compiled.graph_module.graph.nodes)


def test_measured_selection_never_loses_exactness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model = net()
    masks = some_masks(model)
    compiled = fxprune.compile(model, masks, example_inputs=X)
    assert agrees(compiled, model, masks, X)
    assert all("measured" in layer.reason for layer in compiled.report.layers)
    assert "measured" in compiled.report.whole_model or "no layer gains" in compiled.report.whole_model or (
        "no faster" in compiled.report.whole_model
    )  # fmt: skip


def test_a_dump_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXPRUNE_DUMP", str(tmp_path))
    model = net()
    compiled = fxprune.compile(model, some_masks(model), example_inputs=X, options=QUICK)
    names = sorted(path.name for path in tmp_path.iterdir())
    numbered = [name for name in names if name[:3].isdigit()]
    passes = ["fold_batch_norm", "eliminate_channels", "group_rows", "merge_views", "fuse_epilogue"]
    assert numbered == ["000_input.txt", *(f"{index:03d}_{name}.txt" for index, name in enumerate(passes, 1))]
    texts = {name: (tmp_path / name).read_text() for name in names}
    assert "batch_norm" in texts[numbered[0]]
    assert "batch_norm" not in texts[numbered[-1]]
    assert "conv.weight" in texts[numbered[3]]
    assert any("T.prim_func" in text for name, text in texts.items() if name.startswith("kernel"))
    assert texts["report.txt"].strip() == str(compiled.report).strip()
