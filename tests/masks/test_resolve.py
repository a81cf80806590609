"""Masks in every form that is understood become the same bool tensors."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis.extra import numpy as hnp
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize, prune

from fxprune.masks import resolve_masks

SPARSE_BETA = "ignore:Sparse (CSR|CSC|BSR|BSC) tensor support is in beta:UserWarning"
EXPORT_OF_HOOKS = "ignore:The tensor attribute .* was assigned during export:UserWarning"
LAYERS: list[Callable[[], nn.Module]] = [
    lambda: nn.Conv1d(4, 6, 3, groups=2),
    lambda: nn.Conv2d(4, 6, (3, 1)),
    lambda: nn.Conv3d(2, 3, 2),
    lambda: nn.ConvTranspose1d(4, 6, 3),
    lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    lambda: nn.ConvTranspose3d(2, 3, 2),
    lambda: nn.Linear(5, 7),
]


def make_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)).eval()


def random_mask(shape: torch.Size) -> Tensor:
    return torch.rand(shape) < 0.5


@pytest.mark.parametrize("make", LAYERS)
def test_every_kind_of_layer_takes_a_mask(make: Callable[[], nn.Module]) -> None:
    layer = make()
    mask = random_mask(layer.get_parameter("weight").shape)
    resolved = resolve_masks(nn.Sequential(layer), {"0.weight": mask.float()})
    assert list(resolved) == ["0.weight"]
    assert torch.equal(resolved["0.weight"], mask)


@pytest.mark.parametrize("make", LAYERS)
def test_none_keeps_what_is_not_zero(make: Callable[[], nn.Module]) -> None:
    layer = make()
    mask = random_mask(layer.get_parameter("weight").shape)
    layer.get_parameter("weight").data.mul_(mask)  # leaves -0.0 where a negative weight was
    assert torch.equal(resolve_masks(layer, None)["weight"], mask)


def test_none_covers_every_layer_and_nothing_else() -> None:
    assert list(resolve_masks(make_net(), None)) == ["0.weight", "4.weight"]


def test_none_counts_negative_zero_as_zero_and_nan_as_kept() -> None:
    layer = nn.Linear(3, 1)
    layer.weight.data.copy_(torch.tensor([[-0.0, float("nan"), 1e-45]]))
    assert resolve_masks(layer, None)["weight"].tolist() == [[False, True, True]]


@pytest.mark.parametrize("key", ["4", "4.weight"])
def test_names_of_the_module_and_of_the_weight(key: str) -> None:
    assert list(resolve_masks(make_net(), {key: torch.ones(5, 16)})) == ["4.weight"]


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int32, torch.int64, torch.uint16, torch.float16, torch.bfloat16, torch.float64],
)
def test_every_number_type(dtype: torch.dtype) -> None:
    mask = random_mask(torch.Size([5, 16]))
    assert torch.equal(resolve_masks(make_net(), {"4": mask.to(dtype)})["4.weight"], mask)


@pytest.mark.parametrize("dtype", ["?", "u1", "i8", ">i4", "f2", "<f8", ">f4", "g"])
def test_every_numpy_type(dtype: str) -> None:
    mask = random_mask(torch.Size([5, 16]))
    array = np.asfortranarray(mask.numpy().astype(dtype))
    array.flags.writeable = False
    assert torch.equal(resolve_masks(make_net(), {"4": array})["4.weight"], mask)


@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr", "bsc"])
@pytest.mark.filterwarnings(SPARSE_BETA)
def test_stored_positions_of_sparse_tensors_are_kept(layout: str) -> None:
    weight = torch.zeros(4, 16)
    weight[:2, :8] = torch.randn(2, 8)
    mask = weight != 0
    block = {"blocksize": (2, 8)} if layout in {"bsr", "bsc"} else {}
    sparse = getattr(weight, f"to_sparse_{layout}")(**block)
    sparse.values().view(-1)[0] = 0  # stored, so kept
    assert torch.equal(resolve_masks(nn.Linear(16, 4), {"weight": sparse})["weight"], mask)


def test_a_convolution_takes_a_sparse_tensor() -> None:
    mask = random_mask(torch.Size([4, 3, 3, 3]))
    assert torch.equal(resolve_masks(make_net(), {"0": mask.float().to_sparse()})["0.weight"], mask)


def test_an_empty_mask_is_legal() -> None:
    assert not resolve_masks(make_net(), {"0": torch.zeros(4, 3, 3, 3)})["0.weight"].any()


def test_results_share_no_memory_with_the_argument() -> None:
    mask = torch.ones(5, 16, dtype=torch.bool)
    resolved = resolve_masks(make_net(), {"4": mask})["4.weight"]
    mask[:] = False
    assert resolved.all()
    assert not resolved.requires_grad


def test_the_model_is_only_read() -> None:
    model = make_net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    resolve_masks(model, {"0": torch.zeros(4, 3, 3, 3)})
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_prune_buffers_are_the_masks() -> None:
    model = make_net()
    prune.random_unstructured(model[0], "weight", 0.5)
    prune.random_unstructured(model[0], "bias", 0.5)
    resolved = resolve_masks(model, None)
    assert list(resolved) == ["0.weight", "4.weight"]
    assert torch.equal(resolved["0.weight"], model[0].get_buffer("weight_mask").bool())


def test_a_zero_that_prune_keeps_is_kept() -> None:
    layer = nn.Linear(4, 4)
    layer.weight.data[0] = 0
    prune.identity(layer, "weight")
    assert resolve_masks(layer, None)["weight"].all()


def test_a_weight_with_two_masks_keeps_what_both_keep() -> None:
    model = make_net()
    prune.random_unstructured(model[4], "weight", 0.5)
    mask = random_mask(torch.Size([5, 16]))
    resolved = resolve_masks(model, {"4": mask})["4.weight"]
    assert torch.equal(resolved, mask & model[4].get_buffer("weight_mask").bool())


class _Zero(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.get_buffer("mask")


def test_a_parametrization_shows_its_zeros_under_the_plain_name() -> None:
    layer = nn.Linear(4, 4)
    mask = random_mask(torch.Size([4, 4]))
    parametrize.register_parametrization(layer, "weight", _Zero(mask))
    assert torch.equal(resolve_masks(layer, None)["weight"], mask)
    assert torch.equal(resolve_masks(layer, {"weight": mask})["weight"], mask)


class _Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel)


def test_a_weight_outside_a_layer_can_be_named() -> None:
    mask = random_mask(torch.Size([4, 3, 3, 3]))
    assert torch.equal(resolve_masks(_Functional(), {"kernel": mask})["kernel"], mask)


def test_attention_projections_can_be_named() -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 2))
    assert list(resolve_masks(model, {"0.in_proj_weight": torch.ones(24, 8)})) == ["0.in_proj_weight"]


@pytest.mark.filterwarnings(EXPORT_OF_HOOKS)
def test_exported_programs_and_graph_modules_have_the_same_masks() -> None:
    model = make_net()
    prune.random_unstructured(model[0], "weight", 0.5)
    model[4].get_parameter("weight").data[:, ::2] = 0
    want = resolve_masks(model, None)
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(2, 3, 4, 4),))
    for form in (program, program.run_decompositions(), program.module(), fx.symbolic_trace(model)):
        found = resolve_masks(form, None)
        assert set(found) == set(want), type(form)
        assert all(torch.equal(found[name], want[name]) for name in want)


def test_an_exported_program_takes_a_mapping() -> None:
    program = torch.export.export(make_net(), (torch.randn(2, 3, 4, 4),))
    mask = random_mask(torch.Size([5, 16]))
    assert torch.equal(resolve_masks(program, {"4": mask})["4.weight"], mask)


@given(
    hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.sampled_from(["?", "u1", "i4", "f4", "f8"])
)
def test_any_array_of_zeros_and_ones_comes_back(
    array: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], dtype: str
) -> None:
    layer = nn.Linear(array.shape[1], array.shape[0])
    for value in (array.astype(dtype), torch.from_numpy(array.astype(dtype))):
        assert np.array_equal(resolve_masks(layer, {"weight": value})["weight"].numpy(), array)


@given(hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_masked_weights_give_their_mask_back(array: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> None:
    layer = nn.Linear(array.shape[1], array.shape[0])
    layer.weight.data.fill_(-1.5).mul_(torch.from_numpy(array))
    resolved = resolve_masks(layer, None)
    again = resolve_masks(layer, resolved)
    assert np.array_equal(resolved["weight"].numpy(), array)
    assert torch.equal(again["weight"], resolved["weight"])
