"""Files that would run code, lead elsewhere, or are damaged are refused with the reason, and nothing is run."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from safetensors.torch import save_file
from torch import Tensor, nn

from fxprune import MaskError, load_masks
from tests.masks.sources import make_masks, make_net


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.path),)


def read_message(source: object, **options: object) -> str:
    with pytest.raises(MaskError) as caught:
        load_masks(source, **options)  # type: ignore[arg-type]  # wrong on purpose
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".pth.tar", ".bin"])
def test_pickle_with_code_is_not_run(suffix: str, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    torch.save({"fc.weight": torch.ones(5, 9), "x": Evil(trap)}, tmp_path / f"evil{suffix}")
    message = read_message(tmp_path / f"evil{suffix}")
    assert "mkdir" in message
    assert "would run code" in message
    assert not trap.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_plain_pickle_is_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil(trap)))
    assert "evil.pt" in read_message(tmp_path / "evil.pt")
    assert not trap.exists()


def test_array_of_objects_is_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    np.savez(tmp_path / "evil.npz", **{"fc.weight": np.array([Evil(trap)], dtype=object)})  # type: ignore[arg-type]  # its stubs want allow_pickle last
    assert "Python objects are not read" in read_message(tmp_path / "evil.npz")
    torch.save({"fc.weight": np.array([Evil(trap)], dtype=object)}, tmp_path / "evil.pt")
    assert "would run code" in read_message(tmp_path / "evil.pt")
    assert not trap.exists()


def test_whole_module_is_refused_even_if_trusted(tmp_path: Path) -> None:
    torch.save(make_net(), tmp_path / "module.pt")
    assert "whole module is never read" in read_message(tmp_path / "module.pt")
    assert "save its state_dict()" in read_message(tmp_path / "module.pt", trusted=True)


class Packed(Tensor):
    """A tensor of a class of its own, as sparse formats of quantisation libraries are."""


def test_tensors_of_other_classes_are_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(5, 9).as_subclass(Packed)}, tmp_path / "packed.pt")
    message = read_message(tmp_path / "packed.pt")
    assert "Packed" in message
    assert "a plain dict of tensors" in message


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "x.pt", 3]
)
def test_index_opens_only_files_beside_it(name: object, tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(5, 9)}, tmp_path / "other.safetensors")
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    save_file({"fc.weight": torch.zeros(5, 9)}, folder / "sub" / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"fc.weight": name}}))
    assert "only plain names of safetensors files beside it are opened" in read_message(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', "\x00\x01"])
def test_damaged_index(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert "is no index of files" in read_message(tmp_path)


def write_torch(path: Path) -> None:
    torch.save(make_masks(), path)


def write_old_torch(path: Path) -> None:
    torch.save(make_masks(), path, _use_new_zipfile_serialization=False)


def write_safetensors(path: Path) -> None:
    save_file(make_masks(), path)


def write_npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, **{name: mask.numpy() for name, mask in make_masks().items()})  # type: ignore[arg-type]  # its stubs want allow_pickle last


WRITERS = {
    "new.pt": write_torch,
    "old.pt": write_old_torch,
    "a.safetensors": write_safetensors,
    "a.npz": write_npz,
}


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", WRITERS)
def test_truncated_file(name: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    message = read_message(path)
    assert name in message
    assert "whole" in message or "cannot be read" in message


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@given(
    name=st.sampled_from(sorted(WRITERS)), damage=st.dictionaries(st.floats(0, 0.99), st.integers(0, 255), min_size=1)
)
def test_damaged_bytes_are_refused_or_change_values_only(
    name: str, damage: dict[float, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / name
    WRITERS[name](path)
    content = bytearray(path.read_bytes())
    for place, value in damage.items():
        content[int(place * len(content))] = value
    path.write_bytes(content)
    with contextlib.suppress(MaskError):
        assert all(mask.dtype == torch.bool for mask in load_masks(path).values())


@pytest.mark.parametrize("name", WRITERS)
def test_noise_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(bytes(range(256)) * 40)
    assert name in read_message(tmp_path / name)


def test_archive_with_a_path_in_it_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    with zipfile.ZipFile(folder / "a.npz", "w") as file:
        file.writestr("../escaped.npy", b"no array")
    read_message(folder / "a.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]


def test_huge_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    assert "no whole safetensors file" in read_message(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (torch.tensor([[1.0, float("nan")]]), "nan"),
        (torch.tensor([[1.0, float("inf")]]), "inf"),
        (torch.tensor([[1, 2]]), "2"),
        (torch.tensor([[1, -1]]), "-1"),
        (torch.ones(1, 2, dtype=torch.complex64), "complex64"),
    ],
)
def test_values_that_are_no_mask(mask: Tensor, found: str, tmp_path: Path) -> None:
    torch.save({"fc.weight_mask": mask, "conv.weight_mask": torch.ones(2, 2)}, tmp_path / "a.pt")
    message = read_message(tmp_path / "a.pt")
    assert "masks['fc.weight']" in message
    assert found in message


def test_all_wrong_values_are_in_one_error() -> None:
    message = read_message({"a.weight_mask": torch.full((2, 2), 0.5), "b.weight_mask": torch.full((2, 2), 3)})
    assert "2 values are no masks" in message
    assert "masks['a.weight']" in message
    assert "masks['b.weight']" in message


def test_weights_with_nan_have_no_zeros_to_read() -> None:
    weight = torch.randn(4, 4)
    weight[0, 0] = float("nan")
    assert "holds NaN" in read_message({"fc.weight": weight})


def test_scores_with_nan() -> None:
    assert "holds NaN" in read_message({"fc.weight": torch.tensor([[1.0, float("nan")]])}, threshold=0.5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.pt", "There is no file"),
        ("masks.h5", "ends in .h5"),
        ("masks", "ends in no suffix"),
        ("empty", "has no mask.pth"),
    ],
)
def test_wrong_paths(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "masks.h5").touch()
    (tmp_path / "masks").touch()
    (tmp_path / "empty").mkdir()
    assert message in read_message(tmp_path / name)


def test_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    save_file(make_masks(), tmp_path / "a.safetensors")
    monkeypatch.setattr("fxprune.masks.files.safe_open", refuse)
    assert "a.safetensors" in read_message(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.ones(5, 9), "is one tensor"),
        ({"fc.weight": "text"}, "no tensor at all"),
        ({"fc.weight": torch.randn(5, 9)}, "no weight with zeros"),
        ({"state_dict": 3}, "no tensor at all"),
        ({"fc.bitmask": torch.ones(2, dtype=torch.uint8)}, "'fc.shape' beside it"),
        (
            {"fc.bitmask": torch.ones(2, 1, dtype=torch.uint8), "fc.shape": torch.tensor([5, 9])},
            "do not hold the bits of shape",
        ),
        (
            {"module.fc.weight": torch.ones(5, 9).bool(), "model.fc.weight": torch.ones(5, 9).bool()},
            "Two masks of the source have one name",
        ),
    ],
)
def test_sources_without_masks(source: object, message: str) -> None:
    assert message in read_message(source, model=make_net())


def test_convention_is_one_of_two() -> None:
    assert "'keep' (1 = kept) or 'prune'" in read_message({"fc.weight": torch.ones(5, 9)}, convention="sparse")


def test_everything_that_does_not_fit_the_model_is_in_one_error() -> None:
    wrong = {"fc.weight": torch.ones(2, 2), "fcc.weight": torch.ones(5, 9), "conv.weight": make_masks()["conv.weight"]}
    message = read_message(wrong, model=make_net())
    assert "2 masks do not fit the model" in message
    assert "did you mean 'fc.weight'" in message


def test_masks_of_another_network() -> None:
    assert "its weight has [4, 2, 3, 3]" in read_message({"conv.weight": torch.ones(4, 3, 3, 3)}, model=make_net())


def test_file_of_another_class_of_the_network(tmp_path: Path) -> None:
    class Local(nn.Module):
        pass

    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "a.pt")
    assert "no tensor at all" in read_message(tmp_path / "a.pt", model=Local())
