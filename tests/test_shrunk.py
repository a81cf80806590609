"""target="torch": the cut dense graph, without TVM, exportable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import get_model

import fxprune
from benchmarks.models import randomise_batch_norm


def cut_half(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return masks without half of the rows of every weight but the last."""
    generator = torch.Generator().manual_seed(0)
    weights = [(name, weight) for name, weight in model.named_parameters() if weight.ndim > 1 and "weight" in name]
    return {
        name: (torch.rand(weight.shape[0], generator=generator) > 0.5)
        .view(-1, *[1] * (weight.ndim - 1))
        .expand(weight.shape)
        .clone()
        for name, weight in weights[:-1]
    }


class TwoInputs(nn.Module):
    """A network with a keyword input and nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, *, shift: torch.Tensor) -> dict[str, object]:
        hidden = torch.relu(self.first(x)) + shift
        return {"hidden": hidden, "scores": (self.second(hidden), x)}


@pytest.mark.parametrize(
    "name",
    ["resnet18", pytest.param("mobilenet_v2", marks=pytest.mark.slow), pytest.param("swin_t", marks=pytest.mark.slow)],
)
def test_shrunk_networks_compute_the_same_and_export(name: str) -> None:
    model = get_model(name, weights=None)
    randomise_batch_norm(model)
    model = model.double().eval()
    masks, x = cut_half(model), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    compiled = fxprune.compile(model, masks, target="torch", example_inputs=x)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for key, mask in masks.items():
            parameters[key].mul_(mask)
        expected = model(x)
        exported = torch.export.export(compiled.graph_module, (x,)).module()
        for found in (compiled(x), compiled.graph_module(x), exported(x)):
            assert isinstance(found, torch.Tensor)
            assert float((found - expected).abs().max()) <= 1e-9 * float(expected.abs().max())
    record = compiled.report.passes[-1]
    assert record["name"] == "eliminate_channels"
    assert int(str(record["macs_after"])) < 0.65 * int(str(record["macs_before"]))
    assert {"layer", "rows", "channels", "carriers", "folded"} <= set(compiled.report.channels[0])


def test_plain_graph_only_calls_torch() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    compiled = fxprune.compile(model, cut_half(model), target="torch", example_inputs=torch.randn(2, 4))
    targets = {node.target for node in compiled.graph_module.graph.nodes if node.op == "call_function"}
    assert all(isinstance(target, torch._ops.OpOverload) for target in targets)
    assert "0.weight" in dict(compiled.graph_module.named_buffers())


def test_signature_of_the_model_is_kept() -> None:
    model = TwoInputs().double().eval()
    x, shift = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 1, dtype=torch.float64)
    compiled = fxprune.compile(model, cut_half(model), target="torch")
    compiled(x, shift=shift)
    found = compiled.graph_module(x, shift=shift)
    assert set(found) == {"hidden", "scores"}
    assert found["hidden"].shape == (2, 6)
    assert torch.equal(found["scores"][1], x)


def test_record_says_which_rows_stayed() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[[1, 4]] = False
    compiled = fxprune.compile(model, {"0.weight": mask}, target="torch", example_inputs=torch.randn(2, 4))
    first, second = compiled.report.channels
    assert first["rows"] == (0, 2, 3, 5)
    assert second["channels"] == (0, 2, 3, 5)


def test_tvm_is_not_loaded() -> None:
    program = (
        "import sys, torch, fxprune\n"
        "model = torch.nn.Linear(3, 2).eval()\n"
        "fxprune.compile(model, target='torch', example_inputs=torch.randn(1, 3))\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('tvm', 'tvm_ffi')])\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
