"""Every wrong call of `compile` and of what it returns: an FxpruneError that names the place and says what to do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import cast

import pytest
import torch
from torch import nn

import fxprune
from fxprune import CompiledModule, FxpruneError, MaskError, UnsupportedError

X = torch.randn(1, 3, 8, 8)
SHAPE = (32, 32, 3, 3)
KEPT = torch.arange(32 * 32 * 9).reshape(SHAPE) % 5 == 0
QUICK = {"measure": False}


class Net(nn.Module):
    """Two convolutions and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.classifier = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify [N, 3, H, W]."""
        hidden = self.conv2(torch.relu(self.norm(self.conv1(x))))
        return cast("torch.Tensor", self.classifier(hidden.mean((2, 3))))


class Undecided(Net):
    """A network whose Python depends on the values it computes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify [N, 3, H, W], with the sign of the sum."""
        y = super().forward(x)
        return y if y.sum() > 0 else -y


def net() -> nn.Module:
    return Net().eval()


def compile_net(
    model: object = None, masks: object = None, target: object = "cpu", inputs: object = X, **others: object
) -> CompiledModule:
    """Compile with everything right but what is passed."""
    compile_any = cast("Callable[..., CompiledModule]", fxprune.compile)
    kept = {"conv2.weight": KEPT} if masks is None else masks
    options = others.pop("options", QUICK)
    return compile_any(model or net(), kept, target, example_inputs=inputs, options=options, **others)


@cache
def compiled() -> CompiledModule:
    """Return the network compiled, the same one for every wrong call."""
    return compile_net()


def mask(value: object, name: object = "conv2.weight") -> dict[object, object]:
    return {name: value}


def with_nan(name: str) -> nn.Module:
    model = net()
    model.get_parameter(name).data.view(-1)[0] = float("nan")
    return model


def complex_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 32, 3, dtype=torch.complex64)).eval()


WRONG_MASKS: dict[str, tuple[Callable[[], object], str]] = {
    "name of a parameter": (lambda: compile_net(masks=mask(KEPT, "conv3.weight")), r"conv3\.weight.*did you mean"),
    "name of a module": (lambda: compile_net(masks=mask(KEPT, "layer9")), r"layer9.*named_parameters"),
    "name that is no text": (lambda: compile_net(masks=mask(KEPT, 3)), r"masks\[3\].*type int"),
    "shape": (lambda: compile_net(masks=mask(torch.ones(32, 32))), r"conv2\.weight.*\[32, 32\].*\[32, 32, 3, 3\]"),
    "a mask of rows": (lambda: compile_net(masks=mask(torch.ones(32))), r"conv2\.weight.*expand"),
    "values": (lambda: compile_net(masks=mask(torch.full(SHAPE, 0.5))), r"conv2\.weight.*0\.5.*threshold"),
    "NaN": (lambda: compile_net(masks=mask(torch.full(SHAPE, float("nan")))), r"conv2\.weight.*nan.*make it bool"),
    "complex": (lambda: compile_net(masks=mask(KEPT.to(torch.complex64))), r"conv2\.weight.*complex64.*give bool"),
    "meta mask": (lambda: compile_net(masks=mask(KEPT.to("meta"))), r"conv2\.weight.*meta device"),
    "text as a mask": (lambda: compile_net(masks=mask("all")), r"conv2\.weight.*type str.*give a torch tensor"),
    "empty mapping": (lambda: compile_net(masks={}), "masks is empty.*None"),
    "path without a file": (lambda: compile_net(masks="masks.pt"), r"There is no file 'masks\.pt'.*Check the path"),
    "list": (lambda: compile_net(masks=[KEPT]), "masks is of type list.*must map names"),
    "bias": (lambda: compile_net(masks=mask(torch.ones(32), "conv2.bias")), r"conv2\.bias.*only weights"),
    "batch norm": (lambda: compile_net(masks=mask(torch.ones(32), "norm.weight")), r"norm\.weight.*BatchNorm2d"),
    "NaN in a kept weight": (lambda: compile_net(with_nan("conv2.weight")), r"conv2\.weight.*not finite.*prune them"),
    "NaN in a dense weight": (lambda: compile_net(with_nan("conv1.weight")), r"conv1\.weight.*not finite"),
}

WRONG_CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "training mode": (lambda: compile_net(Net().train()), r"training mode; call model\.eval\(\)"),
    "training without inputs": (
        lambda: compile_net(Net().train(), inputs=None),
        r"training mode; call model\.eval\(\)",
    ),
    "one layer in training mode": (lambda: compile_net(thawed()), r"'norm'.*training mode"),
    "function as a model": (lambda: compile_net(torch.relu), r"model is of type builtin_function.*nn\.Module"),
    "compiled model": (lambda: compile_net(compile_net(inputs=None)), "compiled already.*made from"),
    "meta parameters": (lambda: compile_net(net().to("meta")), r"'conv1\.weight' is on the meta device.*Load"),
    "meta input": (lambda: compile_net(inputs=X.to("meta")), "Input 0 is a meta tensor.*real data"),
    "input elsewhere at a call": (lambda: compiled()(X.to("meta")), "Input 0 is a meta tensor"),
    "sparse input": (lambda: compiled()(X.to_sparse()), r"Input 0 is stored as .*to_dense"),
    "integer input": (lambda: compile_net(inputs=X.long()), r"int64 \[1, 3, 8, 8\].*'conv1'.*change their"),
    "double input": (lambda: compiled()(X.double()), r"float64 \[1, 3, 8, 8\].*'conv1'.*change their"),
    "zero batch": (lambda: compile_net(inputs=X[:0]), r"Input 0 has shape \[0, 3, 8, 8\].*at least one"),
    "zero batch at a call": (lambda: compiled()(X[:0]), r"Input 0 has shape \[0, 3, 8, 8\]"),
    "channel count": (lambda: compile_net(inputs=torch.ones(1, 4, 8, 8)), r"'conv1' \(Conv2d\).*3 channels.*but got 4"),
    "rank": (lambda: compiled()(X[0, 0]), r"float32 \[8, 8\].*'conv1'"),
    "two inputs for one": (lambda: compile_net(inputs=(X, X)), "too many positional arguments.*change their number"),
    "no input": (lambda: compiled()(), "missing a required argument: 'x'.*change their number"),
    "keyword": (lambda: compiled()(image=X), "missing a required argument: 'x'"),
    "array": (lambda: compiled()(X.numpy()), r"Input 0 is a ndarray.*torch\.from_numpy"),
    "any object": (lambda: compiled()(object()), "Input 0 is a object.*tensors"),
    "list of inputs": (lambda: compile_net(inputs=[X]), "example_inputs is a list.*tuple"),
    "gradients": (lambda: compiled()(X.clone().requires_grad_()), r"Input 0 requires gradients.*no_grad"),
    "train": (lambda: compile_net().train(), "for inference.*compile again"),
    "deepcopy": (lambda: copy.deepcopy(compile_net()), "cannot be copied.*fxprune.load"),
    "structure": (lambda: compile_net(structure="tiles"), "structure='tiles'.*'exact'"),
    "dtype": (lambda: compile_net(dtype=torch.float16), r"dtype=torch\.float16.*float32"),
    "tune": (lambda: compile_net(tune="quick"), "tune='quick' is not known.*'off'"),
    "database": (lambda: compile_net(database=3), "database=3 is no path.*pass the path of a file"),
    "target": (lambda: compile_net(target="cude"), "target='cude'.*pass 'cpu'"),
    "kind of target": (lambda: compile_net(target={"kind": "metal"}), "'metal'.*'llvm' or 'cuda'"),
    "no architecture": (lambda: compile_net(target={"kind": "cuda"}), "architecture None.*sm_90a"),
    "old architecture": (lambda: compile_net(target='{"kind": "cuda", "arch": "sm_70"}'), "'sm_70'.*sm_90a"),
    "option of a GPU": (lambda: compile_net(target={"kind": "cuda", "arch": "sm_80", "l2": 1}), "l2.*an 'arch' only"),
    "option of a target": (lambda: compile_net(target={"kind": "llvm", "mcpuu": "x"}), "mcpuu.*mcpu"),
    "type of target": (lambda: compile_net(target=3), "target is a int.*pass 'cpu'"),
    "option": (lambda: compile_net(options={"mesure": True}), "'mesure'.*'measure'"),
    "value of measure": (lambda: compile_net(options={"measure": 1}), "'measure'.*True or False"),
    "value of precision": (lambda: compile_net(options={"precision": "fp8"}), "'precision'.*needs 'ieee' or 'tf32'"),
    "precision of a CPU": (
        lambda: compile_net(options={"precision": "tf32"}),
        "target='cpu' computes in strict float32. Only GPUs",
    ),
    "value of threads": (lambda: compile_net(options={"threads": 0}), "'threads'.*from 1 up"),
    "options": (lambda: compile_net(options=["measure"]), "options is a list.*mapping"),
    "complex model": (lambda: compile_net(complex_net(), mask(KEPT[:, :3], "0")), r"'0\.weight' is complex"),
    "branch on data": (lambda: compile_net(Undecided().eval()), "cannot capture Undecided.*data-dependent Python"),
}


def thawed() -> nn.Module:
    model = net()
    model.get_submodule("norm").train()
    return model


@pytest.mark.parametrize("case", WRONG_MASKS)
def test_wrong_mask(case: str) -> None:
    call, words = WRONG_MASKS[case]
    with pytest.raises(MaskError, match=f"(?s){words}"):
        call()


@pytest.mark.parametrize("case", WRONG_CALLS)
def test_wrong_call(case: str) -> None:
    call, words = WRONG_CALLS[case]
    with pytest.raises(UnsupportedError, match=f"(?s){words}"):
        call()


@pytest.mark.parametrize("attribute", ["report", "graph_module"])
def test_nothing_to_report_before_the_first_call(attribute: str) -> None:
    with pytest.raises(FxpruneError, match=r"Nothing was compiled yet.*Call it once"):
        getattr(compile_net(inputs=None), attribute)


def test_a_failed_call_leaves_the_module_usable() -> None:
    compiled = compile_net(inputs=None)
    with pytest.raises(UnsupportedError):
        compiled(torch.ones(1, 4, 8, 8))
    assert compiled(X).shape == (1, 10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_model_and_input_on_another_device() -> None:
    with pytest.raises(UnsupportedError, match="one device"):
        compile_net(net().cuda())
    with pytest.raises(UnsupportedError, match=r"the target is the CPU.*cpu\(\)"):
        compile_net(net().cuda(), inputs=X.cuda())


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_gpu_of_a_machine_without_one_is_refused() -> None:
    with pytest.raises(
        UnsupportedError, match=r"target='cuda' is the GPU of this machine.*name its architecture.*sm_90a"
    ):
        compile_net(target="cuda")
