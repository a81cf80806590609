"""Every source of masks that is in use gives the same masks."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.ao.pruning.sparsifier.weight_norm_sparsifier import WeightNormSparsifier
from torch.nn.utils import prune

import fxprune
from fxprune import MaskError, load_masks, save_masks
from tests.masks.sources import SOURCES, make_masks, make_net, torch_ao_defaultdict, zeroed

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse (CSR|CSC|BSR|BSC) tensor support is in beta:UserWarning"),
    pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants:UserWarning"),
]


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, mask in found.items():
        assert mask.dtype == torch.bool
        assert torch.equal(mask, expected[name]), name


@pytest.mark.parametrize("name", SOURCES)
def test_source_with_the_model(name: str, tmp_path: Path) -> None:
    masks = make_masks()
    path = SOURCES[name](tmp_path, make_net(), masks)
    if name == "7 rigl-torch":
        masks = {"conv.weight": masks["conv.weight"]}
    check_equal(load_masks(path, model=make_net()), masks)


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"7 rigl-torch", "15 Lightning"}))
def test_source_without_a_model(name: str, tmp_path: Path) -> None:
    masks = make_masks()
    check_equal(load_masks(SOURCES[name](tmp_path, make_net(), masks)), masks)


def test_one_attribute_of_lightning_stays_without_a_model(tmp_path: Path) -> None:
    found = load_masks(SOURCES["15 Lightning"](tmp_path, make_net(), make_masks()))
    assert set(found) == {"net.conv.weight", "net.fc.weight"}


def test_a_list_needs_the_model(tmp_path: Path) -> None:
    path = SOURCES["7 rigl-torch"](tmp_path, make_net(), make_masks())
    with pytest.raises(MaskError, match="pass model="):
        load_masks(path)
    with pytest.raises(MaskError, match=r"The list has 1 masks, the model 2 layers"):
        load_masks([None], model=make_net())


def test_a_list_in_layer_order() -> None:
    masks = make_masks()
    check_equal(load_masks([masks["conv.weight"], masks["fc.weight"].int()], model=make_net()), masks)


def test_defaultdict_needs_conversion_or_trust(tmp_path: Path) -> None:
    masks = make_masks()
    path = torch_ao_defaultdict(tmp_path, make_net(), masks)
    with pytest.raises(MaskError, match=r"holds a defaultdict.*torch\.save\(.*trusted=True"):
        load_masks(path)
    check_equal(load_masks(path, trusted=True), masks)


def test_module_with_hooks_of_torch() -> None:
    net, masks = make_net(), make_masks()
    for name, mask in masks.items():
        prune.custom_from_mask(net.get_submodule(name.removesuffix(".weight")), "weight", mask)
    check_equal(load_masks(net), masks)
    check_equal(load_masks(net, model=make_net()), masks)


def test_module_with_a_sparsifier_of_torch_ao() -> None:
    net = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 8))
    sparsifier = WeightNormSparsifier(sparsity_level=0.5, sparse_block_shape=(1, 1))
    layers = [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "1.weight"}]
    sparsifier.prepare(net, layers)  # type: ignore[no-untyped-call]  # torch's own, without annotations
    sparsifier.step()
    expected = {name: entry["mask"].bool() for name, entry in sparsifier.state_dict()["state"].items()}
    assert all(0 < mask.sum() < mask.numel() for mask in expected.values())
    check_equal(load_masks(net), expected)
    check_equal(load_masks(sparsifier.state_dict()), expected)
    sparsifier.squash_mask()
    check_equal(load_masks(net), expected)


@pytest.mark.parametrize("key", ["mask", "_weight_mask", "__weight_mma_mask"])
def test_module_with_buffers(key: str) -> None:
    net, masks = make_net(), make_masks()
    for name, mask in masks.items():
        net.get_submodule(name.removesuffix(".weight")).register_buffer(key, mask, persistent=False)
    check_equal(load_masks(net), masks)


def test_module_without_masks_gives_its_zeros() -> None:
    net, masks = make_net(), make_masks()
    net.load_state_dict(zeroed(net, masks))
    check_equal(load_masks(net), masks)


def test_buffers_of_the_network_itself_are_no_masks() -> None:
    """Swin has buffers `attn_mask`, small language models `mask`: they mask activations."""
    net, masks = make_net(), make_masks()
    state = zeroed(net, masks) | {"block.attn_mask": torch.zeros(3, 3), "attention.mask": torch.tril(torch.ones(4, 4))}
    check_equal(load_masks(state), masks)


def test_dense_layers_have_no_mask() -> None:
    """ModelOpt keeps None where a layer is dense."""
    mask = make_masks()["fc.weight"]
    check_equal(load_masks({"conv._weight_mask": None, "fc._weight_mask": mask}), {"fc.weight": mask})


def test_masks_in_memory_where_true_means_pruned() -> None:
    masks = make_masks()
    pruned = {name: ~mask for name, mask in masks.items()}
    check_equal(load_masks(pruned, convention="prune"), masks)


def test_wrong_polarity_is_found_in_weights_that_have_zeros() -> None:
    net, masks = make_net(), make_masks()
    net.load_state_dict(zeroed(net, masks))
    with pytest.raises(MaskError, match="1 means pruned"):
        load_masks({name: ~mask for name, mask in masks.items()}, model=net)


def test_scores_above_a_threshold() -> None:
    scores = {"fc.weight": torch.arange(45.0).reshape(5, 9)}
    assert int(load_masks(scores, threshold=40)["fc.weight"].sum()) == 4
    with pytest.raises(MaskError, match="neither 0 nor 1"):
        load_masks({"fc.weight": torch.tensor([[1.0, 0.0, 1.0, 0.25]])})


def test_masks_of_output_channels_are_expanded() -> None:
    rows = torch.tensor([True, False, True, True])
    for shape in ((4,), (4, 1, 1, 1)):
        found = load_masks({"conv": rows.reshape(shape)}, model=make_net())
        assert torch.equal(found["conv.weight"], rows[:, None, None, None].expand(4, 2, 3, 3))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "backbone."])
def test_prefixes_come_off(prefix: str) -> None:
    masks = make_masks()
    check_equal(load_masks({prefix + name: mask for name, mask in masks.items()}, model=make_net()), masks)


def test_a_name_that_the_model_has_keeps_its_prefix() -> None:
    net = nn.Sequential()
    net.add_module("model", make_net())
    masks = {f"model.{name}": mask for name, mask in make_masks().items()}
    check_equal(load_masks(masks, model=net), masks)


def test_own_format_round_trip(tmp_path: Path) -> None:
    masks = make_masks()
    save_masks(tmp_path / "ticket.safetensors", masks)
    assert [path.name for path in tmp_path.iterdir()] == ["ticket.safetensors"]
    check_equal(load_masks(tmp_path / "ticket.safetensors"), masks)
    check_equal(load_masks(str(tmp_path), model=make_net()), masks)


def test_masks_that_share_memory_are_saved(tmp_path: Path) -> None:
    mask = torch.rand(4, 4) < 0.5
    save_masks(tmp_path / "tied.safetensors", {"a.weight": mask, "b.weight": mask.T})
    check_equal(load_masks(tmp_path / "tied.safetensors"), {"a.weight": mask, "b.weight": mask.T})


@pytest.mark.parametrize(
    ("name", "masks", "message"),
    [
        ("masks.pt", {"a": torch.ones(2, dtype=torch.bool)}, "end in .safetensors"),
        ("masks.safetensors", {"a": torch.ones(2)}, "no bool tensor"),
        ("masks.safetensors", {}, "is empty"),
    ],
)
def test_what_cannot_be_saved(name: str, masks: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    with pytest.raises(MaskError, match=message):
        save_masks(tmp_path / name, masks)
    assert list(tmp_path.iterdir()) == []


@given(
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=4), seed=st.integers(0, 999)
)
def test_any_masks_survive_our_format_and_npz(
    shapes: list[tuple[int, int]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, generator = tmp_path_factory.mktemp("masks"), torch.Generator().manual_seed(seed)
    masks = {f"{index}.weight": torch.rand(shape, generator=generator) < 0.5 for index, shape in enumerate(shapes)}
    save_masks(folder / "a.safetensors", masks)
    np.savez(folder / "a.npz", **{name: mask.numpy() for name, mask in masks.items()})  # type: ignore[arg-type]  # its stubs want allow_pickle last
    check_equal(load_masks(folder / "a.safetensors"), masks)
    check_equal(load_masks(folder / "a.npz"), masks)


def test_compile_takes_a_path(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(9, 5)).eval()
    mask = torch.rand(5, 9) < 0.5
    save_masks(tmp_path / "m.safetensors", {"0.weight": mask})
    compiled = fxprune.compile(
        net, tmp_path / "m.safetensors", example_inputs=torch.randn(2, 9), options={"measure": False}
    )
    assert torch.equal(compiled.masks["0.weight"], mask)
