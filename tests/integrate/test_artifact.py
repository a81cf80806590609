"""A compiled model in a file: the same bits in another process, and no file that is wrong is ever run."""

from __future__ import annotations

import hashlib
import json
import os
import pickletools
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torchvision
from torch import nn
from torch.utils._pytree import tree_leaves

import fxprune
from fxprune import ArtifactError, CompiledModule, UnsupportedError
from fxprune.codegen import host
from tests.compiling import (
    MASKS,
    QUICK,
    Layers,
    Masks,
    draw_masks,
    force_kernels,
    kernels,
    largest_difference,
    row_groups,
)
from tests.networks import Function, randomise_norms

ROOT = Path(__file__).parents[2]
X = torch.linspace(-2, 2, 2 * 3 * 12 * 12).sin().reshape(2, 3, 12, 12)


def _forward(net: Layers, x: torch.Tensor, *, scale: float = 1.0) -> dict[str, object]:
    hidden = torch.relu(net.norm(net.stem(x)))
    hidden = torch.relu(net.conv(hidden) + hidden)
    return {"logits": net.classifier(hidden.mean((2, 3))) * scale, "parts": [hidden, (x[:, 1:], None)]}


def network() -> tuple[nn.Module, Masks]:
    model = Function(
        _forward,
        stem=nn.Conv2d(3, 32, 3, padding=1),
        norm=nn.BatchNorm2d(32),
        conv=nn.Conv2d(32, 32, 3, padding=1),
        classifier=nn.Linear(32, 10),
    )
    model.eval()
    randomise_norms(model)
    return model, draw_masks(model, row_groups(16))


@pytest.fixture(scope="module")
def compiled() -> CompiledModule:
    with pytest.MonkeyPatch.context() as patch:
        force_kernels(patch, "rows")
        model, masks = network()
        made = fxprune.compile(model, masks, options=QUICK)
        made(X)
        made(X[:1], scale=2.0)
        return made


@pytest.fixture(scope="module")
def saved(compiled: CompiledModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "model.fxp"
    compiled.save(path)
    return path


def equal(found: object, expected: object) -> bool:
    """Whether two results are the same, bit by bit."""
    pairs = zip(tree_leaves(found), tree_leaves(expected), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def rewrite(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """Write a file with other members whose digests are right, as somebody would who forges one."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    manifest = json.loads(members.pop("manifest.json"))
    for name, data in members.items():
        manifest["members"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    text = json.dumps(manifest).encode()
    with zipfile.ZipFile(target, "w") as archive:
        archive.comment = b"fxprune " + hashlib.sha256(text).hexdigest().encode()
        for name, data in (("manifest.json", text), *members.items()):
            archive.writestr(name, data)
    return target


def change_json(member: str, edit: Callable[[Any], None]) -> Callable[[dict[str, bytes]], None]:
    """Return a change of one JSON member."""

    def change(members: dict[str, bytes]) -> None:
        value = json.loads(members[member])
        edit(value)
        members[member] = json.dumps(value).encode()

    return change


def test_all_shapes_come_back_bit_by_bit(compiled: CompiledModule, saved: Path) -> None:
    loaded = fxprune.load(saved)
    assert len(kernels(compiled)) == 3
    assert equal(loaded(X), compiled(X))
    assert equal(loaded(X[:1], scale=2.0), compiled(X[:1], scale=2.0))
    assert loaded.report.to_dict() == compiled.report.to_dict()
    assert str(loaded.report) == str(compiled.report)
    assert list(loaded.masks) == list(compiled.masks)
    assert all(torch.equal(mask, compiled.masks[name]) for name, mask in loaded.masks.items())
    text = str(compiled.graph_module.graph)
    assert str(loaded.graph_module.graph) == text


def test_another_process_gives_the_same_bits_without_tvm(compiled: CompiledModule, saved: Path) -> None:
    result = saved.with_name("result.pt")
    program = (
        "import sys, torch, fxprune\n"
        f"loaded = fxprune.load({str(saved)!r})\n"
        "x = torch.linspace(-2, 2, 864).sin().reshape(2, 3, 12, 12)\n"
        f"torch.save(loaded(x)['logits'], {str(result)!r})\n"
        "print([name for name in sys.modules if name == 'tvm' or name.startswith('tvm.')])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    expected = compiled(X)
    assert isinstance(expected, dict)
    assert torch.equal(torch.load(result), expected["logits"])


@pytest.mark.parametrize("native", ["rebuild", "dense"])
def test_other_ways_to_run_it(compiled: CompiledModule, saved: Path, native: str) -> None:
    loaded = fxprune.load(saved, native=native)
    assert largest_difference(loaded(X), compiled(X)) <= 1e-6
    assert len(kernels(loaded)) == (3 if native == "rebuild" else 0)
    assert loaded.report.whole_model.startswith("dense: loaded with" if native == "dense" else "sparse")


@pytest.mark.parametrize("native", ["trust", "dense"])
def test_a_model_without_its_dead_channels_comes_back(tmp_path: Path, native: str) -> None:
    model, masks = network()
    masks["conv.weight"][:8] = False
    masks["classifier.weight"][:, 8:12] = False
    compiled = fxprune.compile(model, masks, example_inputs=X, options=QUICK)
    compiled.save(tmp_path / "small.fxp")
    loaded = fxprune.load(tmp_path / "small.fxp", native=native)
    assert largest_difference(loaded(X), compiled(X)) <= (0 if native == "trust" else 1e-6)
    ours, theirs = loaded.report.layers, compiled.report.layers
    assert [layer.weight_shape for layer in ours] == [layer.weight_shape for layer in theirs]
    assert [layer.macs_dense for layer in ours] == [layer.macs_dense for layer in theirs]
    assert loaded.report.channels == compiled.report.channels


def test_a_shrunk_model_comes_back(tmp_path: Path) -> None:
    model, masks = network()
    masks["conv.weight"][:8] = False
    compiled = fxprune.compile(model, masks, target="torch", example_inputs=X)
    compiled.save(tmp_path / "small.fxp")
    loaded = fxprune.load(tmp_path / "small.fxp")
    assert equal(loaded(X), compiled(X))
    assert loaded.report.channels == compiled.report.channels
    exported = torch.export.export(loaded.graph_module, (X,)).module()
    assert largest_difference(exported(X), compiled(X)) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("resnet18", "groups of 32"),
        ("mobilenet_v3_small", "cells, a tenth"),
        ("densenet121", "channels"),
        ("swin_t", "groups of 8"),
        ("shufflenet_v2_x0_5", "all kept"),
    ],
)
def test_real_models_come_back(tmp_path: Path, name: str, kind: str) -> None:
    model = randomise_norms(cast("nn.Module", torchvision.models.get_model(name))).eval()
    x = torch.randn(1, 3, 64, 64)
    for target in ("cpu", "torch"):
        compiled = fxprune.compile(
            model, draw_masks(model, MASKS[kind]), target=target, example_inputs=x, options=QUICK
        )
        compiled.save(tmp_path / "model.fxp")
        loaded = fxprune.load(tmp_path / "model.fxp")
        assert equal(loaded(x), compiled(x))
        assert loaded.report.to_dict() == compiled.report.to_dict()


def test_another_shape_is_refused(saved: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"not compiled for these inputs .*\[1, 3, 9, 9\].*before it is saved"):
        fxprune.load(saved)(X[:1, :, :9, :9])


def test_there_is_no_pickle_in_the_file(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        names = archive.namelist()
        assert {Path(name).suffix for name in names} == {".json", ".safetensors", ".so"}
        for name in names:
            data = archive.read(name)
            assert not data.startswith(b"\x80")
            with pytest.raises((ValueError, UnicodeDecodeError)):
                list(pickletools.genops(data))


def test_loading_never_unpickles(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    for name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(name, refuse)
    fxprune.load(saved)


def test_every_cut_and_every_changed_byte_is_noticed(compiled: CompiledModule, saved: Path, tmp_path: Path) -> None:
    data, path = saved.read_bytes(), tmp_path / "damaged.fxp"
    for size in [0, 1, 100, *range(1000, len(data), len(data) // 12), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(ArtifactError, match="damaged"):
            fxprune.load(path)
    expected = compiled(X)
    refused = 0
    for position in range(7, len(data), len(data) // 60):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :])
        try:
            found = fxprune.load(path)(X)
        except ArtifactError:
            refused += 1
        else:  # a byte of the zip's own headers that nothing depends on
            assert equal(found, expected)
    assert refused >= 55


WRONG: dict[str, tuple[Callable[[dict[str, bytes]], None], str]] = {
    "another form": (change_json("manifest.json", lambda facts: facts.update(schema=9)), "of form 9; this version"),
    "another format": (change_json("manifest.json", lambda facts: facts.update(format="x")), "is a 'x' of form 2"),
    "another version": (
        change_json("manifest.json", lambda facts: facts["versions"].update(fxprune="9.9")),
        r"other versions: fxprune 9\.9, here .*native='rebuild'",
    ),
    "another machine": (
        change_json("manifest.json", lambda facts: facts.update(machine="riscv64")),
        r"lacks riscv64.*native='rebuild'",
    ),
    "unknown operator": (
        change_json("graph.json", lambda graph: graph["parts"][0]["graph"]["nodes"][-2].update(target="os::system.x")),
        r"'os::system\.x', which is not registered",
    ),
    "attribute of torch.ops": (
        change_json(
            "graph.json", lambda graph: graph["parts"][0]["graph"]["nodes"][-2].update(target="load_library::x.y")
        ),
        "not registered",
    ),
    "module call": (
        change_json("graph.json", lambda graph: graph["parts"][0]["graph"]["nodes"][-2].update(op="call_module")),
        "node of kind 'call_module'",
    ),
    "missing node": (
        change_json("graph.json", lambda graph: graph["parts"][0]["graph"]["nodes"].pop(0)),
        "damaged: KeyError",
    ),
    "missing tensors": (
        change_json("graph.json", lambda graph: graph["masks"]["conv.weight"].update(bits="none")),
        "damaged: KeyError",
    ),
    "other tensors": (lambda members: members.update({"tensors.safetensors": b"\x00" * 64}), "damaged"),
    "other schedules": (
        change_json(
            "graph.json",
            lambda graph: next(iter(graph["parts"][0]["recipe"]["schedules"].values())).update(chunk=7),
        ),
        "kernels in .* are not those",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_refused(saved: Path, tmp_path: Path, name: str) -> None:
    change, message = WRONG[name]
    path = rewrite(saved, tmp_path / "wrong.fxp", change)
    with pytest.raises(ArtifactError, match=message):
        fxprune.load(path)


def test_the_forger_of_these_tests_changes_nothing_else(compiled: CompiledModule, saved: Path, tmp_path: Path) -> None:
    path = rewrite(saved, tmp_path / "same.fxp", lambda _: None)
    assert equal(fxprune.load(path)(X), compiled(X))


def test_a_processor_without_the_instructions_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "host_features", lambda: frozenset({"sse42", "popcnt"}))
    with pytest.raises(ArtifactError, match=r"machine code for .* this machine lacks .*native='rebuild'"):
        fxprune.load(saved)
    assert fxprune.load(saved, native="dense")(X)


@pytest.mark.slow
def test_another_processor_gets_kernels_of_its_own(
    compiled: CompiledModule, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(graph: Any) -> None:
        for part in graph["parts"]:
            part["recipe"]["target"].update(mcpu="somewhere-else", lanes=4)

    monkeypatch.setattr("fxprune.backend._guard", lambda _, program, __, choices, *___, **____: (program, choices, "x"))
    path = rewrite(saved, tmp_path / "other.fxp", change_json("graph.json", other))
    loaded = fxprune.load(path, native="rebuild")
    assert largest_difference(loaded(X), compiled(X)) <= 1e-6
    assert all("measured" in layer.reason for layer in loaded.report.layers)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.fxp", "No such file.*Check the path"),
        (lambda folder: folder, "cannot be read"),
        (lambda folder: _text(folder / "text.fxp"), "damaged or cut off: it is no whole zip"),
        (lambda folder: _zip(folder / "other.zip"), "damaged|not written by fxprune"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        fxprune.load(make(tmp_path))


def _text(path: Path) -> Path:
    path.write_text("no model", encoding="utf-8")
    return path


def _zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", "{}")
    return path


def test_wrong_calls(compiled: CompiledModule, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"native='yes' is not known; pass one of 'trust'"):
        fxprune.load(saved, native="yes")
    with pytest.raises(UnsupportedError, match=r"loaded from a file.*Copy that file"):
        fxprune.load(saved).save(tmp_path / "again.fxp")
    with pytest.raises(ArtifactError, match=r"cannot be written.*folder that exists"):
        compiled.save(tmp_path / "missing" / "model.fxp")
    model, masks = network()
    with pytest.raises(fxprune.FxpruneError, match="Nothing was compiled yet"):
        fxprune.compile(model, masks, options=QUICK).save(tmp_path / "early.fxp")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_was_trained_on_is_not_saved(tmp_path: Path) -> None:
    model, masks = network()
    compiled = fxprune.compile(model, masks, target="torch", example_inputs=X)
    with torch.no_grad():
        model.get_parameter("classifier.weight").mul_(1.5)
    with pytest.raises(UnsupportedError, match=r"changed after it was compiled.*compile again"):
        compiled.save(tmp_path / "model.fxp")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_keeps_the_old_file(
    compiled: CompiledModule, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.fxp"
    path.write_bytes(saved.read_bytes())

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ArtifactError, match="No space left on device"):
        compiled.save(path)
    assert [item.name for item in tmp_path.iterdir()] == ["model.fxp"]
    assert path.read_bytes() == saved.read_bytes()
