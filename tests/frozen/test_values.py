"""Arguments of nodes as JSON and back."""

from __future__ import annotations

import json
import math
import operator

import pytest
import torch
from torch import fx

from fxprune.errors import ArtifactError, UnsupportedError
from fxprune.frozen.inputs import InputForm, read_inputs
from fxprune.frozen.tensors import TensorStore, read_mask, read_tensor
from fxprune.frozen.values import read_target, read_value, write_target, write_value

GRAPH = fx.Graph()
NODE = GRAPH.placeholder("x")

VALUES = [
    None,
    True,
    3,
    -0.0,
    1e-300,
    "text",
    {"node": "a string key of the user's"},
    float("inf"),
    2 - 1j,
    [1, (2, [None, (3.5,)])],
    slice(None, 4, 2),
    torch.float64,
    torch.channels_last,
    torch.strided,
    torch.device("cpu"),
    (NODE, [NODE, {"key": NODE}]),
]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_values_come_back(value: object) -> None:
    text = json.dumps(write_value(value, NODE), allow_nan=False)
    found = read_value(json.loads(text), {"x": NODE})
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, float):
        assert math.copysign(1, value) == math.copysign(1, float(str(found)))


def test_other_values_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="Node 'x' has an argument of type object"):
        write_value([object()], NODE)
    damaged: list[object] = [
        {"node": "x", "float": "1"},
        {"unknown": []},
        {"tuple": 3},
        {"dtype": "load"},
        {"dtype": "strided"},
    ]
    for wrong in damaged:
        with pytest.raises(ArtifactError):
            read_value(wrong, {"x": NODE})


@pytest.mark.parametrize("target", [torch.ops.aten.add.Tensor, torch.ops.aten.relu.default, operator.getitem], ids=str)
def test_targets_come_back(target: object) -> None:
    node = GRAPH.call_function(target, (NODE, 1))  # type: ignore[arg-type]
    assert read_target(write_target(node)) is target


def test_other_targets_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="which is no operator of torch"):
        write_target(GRAPH.call_function(torch.nn.functional.relu, (NODE,)))
    for name in ("", "print", "aten::nothing.default", "aten::add", "load_library::__func__.x", "__class__::a.b"):
        with pytest.raises(ArtifactError, match="not registered here"):
            read_target(name)


def stored(tensor: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, int]:
    """Store a tensor alone; return it read again, and the bytes it took."""
    store = TensorStore()
    form = json.loads(json.dumps(store.add(tensor, mask)))
    return read_tensor(form, store.tensors), sum(part.nbytes for part in store.tensors.values())


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4, 5, 6),
        torch.randn(3, 4, 5, 6).contiguous(memory_format=torch.channels_last),
        torch.randn(4, 6).t(),
        torch.randn(6)[::2],
        torch.randn(2, 1).expand(2, 7),
        torch.tensor(3.5),
        torch.zeros(0, 3),
        torch.arange(6).reshape(2, 3),
        torch.tensor([True, False]),
        torch.randn(4).half(),
    ],
    ids=lambda tensor: f"{tensor.dtype} {list(tensor.shape)} {tensor.stride()}",
)
def test_tensors_come_back(tensor: torch.Tensor) -> None:
    found, _ = stored(tensor)
    assert torch.equal(found, tensor)
    assert found.dtype == tensor.dtype
    if tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last) or tensor.ndim == 2:
        dense = tensor.numel() == tensor.untyped_storage().nbytes() // max(1, tensor.element_size())
        assert not dense or found.stride() == tensor.stride()


def test_pruned_weights_take_their_kept_values() -> None:
    mask = torch.rand(64, 64) < 0.1
    weight = torch.randn(64, 64).mul(mask).abs()
    found, size = stored(weight, mask)
    assert torch.equal(found, weight)
    assert size == 4 * int(mask.sum()) + 64 * 64 // 8
    weight[~mask] = -0.0
    found, size = stored(weight, mask)
    assert torch.equal(found.signbit(), weight.signbit())
    assert size == weight.nbytes


def test_equal_and_shared_tensors_are_stored_once_and_apart() -> None:
    store, base = TensorStore(), torch.randn(4, 4)
    forms = [store.add(base), store.add(base.clone()), store.add(base.view(16)), store.add(base[1])]
    assert len(store.tensors) == 3
    assert len({tensor.data_ptr() for tensor in store.tensors.values()}) == 3
    assert torch.equal(read_tensor(forms[3], store.tensors), base[1])
    with pytest.raises(KeyError):
        read_mask({"bits": "none", "shape": [2]}, store.tensors)


def test_forms_of_inputs_come_back() -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    form = InputForm.of((x, [3, None]), {"scale": 2.0, "pair": (x[0], "text")})
    found = read_inputs(json.loads(json.dumps(form.write())))
    assert found.spec == form.spec
    assert found.leaves == form.leaves
    args, kwargs = found.arguments()
    assert isinstance(args[0], torch.Tensor)
    assert (args[0].shape, args[0].stride()) == (x.shape, x.stride())
    assert kwargs["scale"] == 2.0
