"""Layers timed one by one decide what runs: on this machine's GPU, or by the records of one elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune import backend_cuda
from fxprune.codegen.cuda.build import CudaLibrary, write_sources
from fxprune.codegen.cuda.cache import find_library, open_library
from fxprune.codegen.cuda.device import Device
from fxprune.codegen.cuda.driver import Grid
from fxprune.codegen.cuda.nvcc import find_nvcc
from fxprune.codegen.cuda.schedules import TILES, find_candidates
from fxprune.codegen.cuda.target import CudaTarget, read_cuda_target
from fxprune.errors import CodegenError, UnsupportedError
from fxprune.lowering.cuda.known import KnownOnGpu, candidate_text
from fxprune.lowering.cuda.trials import OpenDevice, find_trials
from fxprune.lowering.layer_text import DENSE
from fxprune.records.database import Database
from fxprune.report import LayerReport
from fxprune.tuning.progress import Standing
from tests.codegen.cuda.emulator import Emulator
from tests.compiling import draw_masks, row_groups
from tests.lowering.cuda.emulated import EmulatedDevice
from tests.lowering.cuda.test_program import ARCH

pytestmark = pytest.mark.usefixtures("no_nvcc")
Find = Callable[[Mapping[str, str], str], CudaLibrary]
X = torch.randn(2, 4, 7, 6, generator=torch.Generator().manual_seed(0))


def make() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return two layers of one kind, and another one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 20, 1)).eval()
    return model, draw_masks(model, row_groups(4, 0.5))


_TILES = (TILES[0], TILES[3], TILES[6])


@pytest.fixture(autouse=True)
def few_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave three tiles in the space: each is compiled twice, once an order."""
    monkeypatch.setattr("fxprune.codegen.cuda.schedules.TILES", _TILES)


class FakeGpu(EmulatedDevice):
    """The CUDA text on the CPU, with times that a test says; `wrong` kernels add one to every result."""

    def __init__(self, emulator: Emulator, times: Callable[[str], float], wrong: str | None = None) -> None:
        """Take compiled kernels."""
        self.torch_device, self._emulator, self.launches = torch.device("cpu"), emulator, []
        self._times_of, self._wrong = times, wrong
        self.timed: list[str] = []

    @property
    def name(self) -> str:
        """What stands in records."""
        return "NVIDIA Fake"

    def bind(self, name: str, grid: Grid, tensors: Mapping[str, torch.Tensor]) -> Callable[[], None]:
        """Return a call of a kernel."""
        call = super().bind(name, grid, tensors)

        def run() -> None:
            call()
            if name == self._wrong:
                tensors["Y"].add_(1)

        return run

    def time(self, calls: Mapping[str, Callable[[], object]]) -> Mapping[str, float]:
        """Return what the test says, or the whole model's times."""
        for call in calls.values():
            call()
        self.timed += calls
        return {name: self._times_of(name) for name in calls}


def fast_kernels(name: str) -> float:
    """Let taller tiles of fewer pixels be faster, and dense torch slow."""
    if name == DENSE:
        return 50.0
    options = json.loads(name)
    return 10.0 + int(options["pixels"]) / 64 - int(options["rows"]) / 128 + bool(options["order"] == "pixels") / 1000


@pytest.fixture(scope="module")
def emulate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mapping[str, str]], Emulator]:
    """Return what compiles kernels, the same ones once."""
    known: dict[tuple[tuple[str, str], ...], Emulator] = {}

    def find(scripts: Mapping[str, str]) -> Emulator:
        key = tuple(scripts.items())
        if key not in known:
            (source,) = write_sources([scripts], ARCH["arch"])
            known[key] = Emulator(source, tmp_path_factory.mktemp("kernels"))
        return known[key]

    return find


@pytest.fixture
def devices(
    emulate: Callable[[Mapping[str, str]], Emulator], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[FakeGpu]]:
    """Let this machine have a GPU whose calls take so long; returns what was opened."""

    def install(times: Callable[[str], float], wrong: str | None = None) -> list[FakeGpu]:
        opened: list[FakeGpu] = []

        def open_device(scripts: Mapping[str, str]) -> Device:
            opened.append(FakeGpu(emulate(scripts), times, wrong))
            return opened[-1]

        monkeypatch.setattr(backend_cuda, "open_here", lambda *_: ("NVIDIA Fake", open_device))
        monkeypatch.setattr(backend_cuda, "find_obstacle_to_building", lambda: None)
        monkeypatch.setattr(backend_cuda, "find_gpu", lambda: torch.device("cpu"))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
        return opened

    return install


def compile_layers(target: object, database: Path, **options: object) -> tuple[LayerReport, ...]:
    model, masks = make()
    compiled = fxprune.compile(model, masks, target, example_inputs=X, database=database, **options)  # type: ignore[arg-type]
    assert isinstance(compiled, fxprune.CompiledModule)
    return compiled.report.layers


def test_on_its_machine_layers_are_measured_once_a_kind(
    devices: Callable[..., list[FakeGpu]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxprune.lowering.cuda.trials._HOPELESS", 1e9)
    opened = devices(fast_kernels)
    layers = compile_layers("cuda", tmp_path / "db.jsonl")
    assert len(opened) == 2
    assert [len(device.timed) for device in opened] == [4, 4], "three kernels and dense"
    assert all(layer.kernel.startswith("columns") for layer in layers)
    assert all(layer.measured_us is not None and layer.dense_us == pytest.approx(50.0) for layer in layers)
    assert "dense in strict float32 50.0 us (NVIDIA Fake)" in layers[0].reason
    assert not (tmp_path / "db.jsonl").exists(), "nothing is kept unless it is asked for"


def test_what_was_recorded_is_not_measured_again(
    devices: Callable[..., list[FakeGpu]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxprune.lowering.cuda.trials._HOPELESS", 1e9)
    opened = devices(fast_kernels)
    first = compile_layers("cuda", tmp_path / "db.jsonl", tune="default")
    assert len(opened) == 2
    again = compile_layers("cuda", tmp_path / "db.jsonl", tune="default")
    assert len(opened) == 2
    assert [layer.kernel for layer in first] == [layer.kernel for layer in again]


def test_what_measures_slower_stays_dense(
    devices: Callable[..., list[FakeGpu]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxprune.lowering.cuda.trials._HOPELESS", 1e9)
    devices(lambda name: 10.0 if name == DENSE else 9.8)
    layers = compile_layers("cuda", tmp_path / "db.jsonl")
    assert {layer.kernel for layer in layers} == {"dense: torch"}
    assert layers[0].reason.endswith("; measured 9.8 us, dense in strict float32 10.0 us (NVIDIA Fake)")


def test_hopeless_layers_are_not_tried_when_compiling(devices: Callable[..., list[FakeGpu]], tmp_path: Path) -> None:
    opened = devices(fast_kernels)
    layers = compile_layers("cuda", tmp_path / "db.jsonl")
    hopeful = [layer for layer in layers if layer.measured_us is not None]
    assert len(opened) == len({layer.operator for layer in hopeful})


def test_without_a_compiler_nothing_is_timed_before_the_choice(
    devices: Callable[..., list[FakeGpu]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = devices(fast_kernels)
    monkeypatch.setattr(backend_cuda, "find_obstacle_to_building", lambda: "there is no nvcc.")
    layers = compile_layers("cuda", tmp_path / "db.jsonl")
    assert not opened
    assert all(layer.measured_us is None for layer in layers)


def tune(target: object, database: Path, **options: object) -> Standing:
    model, masks = make()
    return fxprune.tune(model, masks, target, example_inputs=X, database=database, **options)  # type: ignore[arg-type]


def test_tuning_on_the_gpu_decides_what_is_compiled_elsewhere(
    devices: Callable[..., list[FakeGpu]], tmp_path: Path
) -> None:
    shown: list[Standing] = []
    opened = devices(fast_kernels)
    found = tune("cuda", tmp_path / "db.jsonl", progress=shown.append)
    assert (found.done, found.failed, len(opened)) == (found.total, 0, 2)
    assert [one.done for one in shown] == sorted(one.done for one in shown)
    assert found.dense_us == pytest.approx(150.0)
    layers = compile_layers(ARCH, tmp_path / "db.jsonl")
    assert "chosen" not in layers[0].reason
    assert {layer.kernel.split()[1].split("x")[1] for layer in layers} == {"64"}, "tiles of the fewest pixels"
    assert {layer.kernel.split()[-1] for layer in layers} == {"blocks"}, "both orders were tried"
    assert all("(NVIDIA Fake)" in layer.reason for layer in layers)
    assert sum(layer.measured_us or 0 for layer in layers) == pytest.approx(found.best_us)
    again = tune("cuda", tmp_path / "db.jsonl")
    assert (again.done, again.total, len(opened)) == (0, 0, 2)
    assert (again.best_us, again.dense_us) == pytest.approx((found.best_us, found.dense_us))


def test_a_search_that_was_stopped_goes_on(devices: Callable[..., list[FakeGpu]], tmp_path: Path) -> None:
    opened = devices(fast_kernels)
    first = tune("cuda", tmp_path / "db.jsonl", seconds=1e-9)
    assert (first.done, len(opened)) == (0, 0)

    def stop(_: Standing) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune("cuda", tmp_path / "db.jsonl", progress=stop)
    assert len(opened) == 1
    assert tune("cuda", tmp_path / "db.jsonl").done == first.total / 2


def test_records_of_another_precision_or_other_kernels_do_not_count(
    devices: Callable[..., list[FakeGpu]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices(fast_kernels)
    tune("cuda", tmp_path / "db.jsonl")
    assert all(layer.measured_us for layer in compile_layers(ARCH, tmp_path / "db.jsonl"))
    rounded = compile_layers(ARCH, tmp_path / "db.jsonl", options={"precision": "tf32"})
    assert all(layer.measured_us is None for layer in rounded)
    other = compile_layers({"kind": "cuda", "arch": "sm_80"}, tmp_path / "db.jsonl")
    assert all(layer.measured_us is None for layer in other)
    monkeypatch.setattr("fxprune.lowering.cuda.known.kernel_version", lambda: "another")
    assert all(layer.measured_us is None for layer in compile_layers(ARCH, tmp_path / "db.jsonl"))


def test_a_kernel_whose_result_is_wrong_is_never_chosen(devices: Callable[..., list[FakeGpu]], tmp_path: Path) -> None:
    devices(fast_kernels, wrong="tile_0")
    found = tune("cuda", tmp_path / "db.jsonl")
    assert found.failed == 2
    lines = [json.loads(line) for line in (tmp_path / "db.jsonl").read_text().splitlines()]
    wrong = [line for line in lines if line["seconds"] is None]
    assert len(wrong) == 2
    assert all("its result is off by" in line["note"] for line in wrong)
    kernels = {layer.kernel for layer in compile_layers(ARCH, tmp_path / "db.jsonl")}
    assert all(candidate_text_of(line["candidate"]) not in kernels for line in wrong)


def candidate_text_of(candidate: str) -> str:
    """Return a recorded kernel as the report names it."""
    from fxprune.codegen.cuda.plain import read_schedule

    return str(read_schedule(json.loads(candidate)))


def test_the_latest_gpu_of_an_architecture_counts_elsewhere(tmp_path: Path) -> None:
    target, database = read_cuda_target(ARCH), Database(tmp_path / "db.jsonl")
    assert KnownOnGpu(database, target, None).device is None
    for device, us in (("first", 1.0), ("second", 2.0)):
        KnownOnGpu(database, target, device, fills=True).add("layer", {DENSE: us}, {})
    elsewhere = KnownOnGpu(database, target, None)
    assert elsewhere.device == "second"
    assert elsewhere.dense_us("layer") == pytest.approx(2.0)
    assert KnownOnGpu(database, target, "first").dense_us("layer") == pytest.approx(1.0)
    assert KnownOnGpu(database, target, "third").dense_us("layer") is None


def _first_scripts() -> dict[str, str]:
    """Return the kernels of the first layer."""
    seen: list[dict[str, str]] = []
    model, masks = make()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fxprune.tuning.on_gpu.open_library", lambda scripts, _: seen.append(dict(scripts)))
        patch.setenv("FXPRUNE_CACHE_DIR", "unused")
        fxprune.tune(model, masks, ARCH, example_inputs=X, only="build")
    return seen[0]


def test_building_alone_measures_nothing_and_needs_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    monkeypatch.setattr("fxprune.tuning.on_gpu.open_library", lambda scripts, _: built.append(len(scripts)))
    monkeypatch.delenv("FXPRUNE_CACHE_DIR", raising=False)
    with pytest.raises(UnsupportedError, match="FXPRUNE_CACHE_DIR is not set; it names the folder"):
        tune(ARCH, tmp_path / "db.jsonl", only="build")
    monkeypatch.setenv("FXPRUNE_CACHE_DIR", str(tmp_path))
    found = tune(ARCH, tmp_path / "db.jsonl", only="build")
    assert found.done == found.total == sum(built)
    assert len(built) == 2
    assert not (tmp_path / "db.jsonl").exists()


@pytest.mark.skipif(find_nvcc() is None, reason="needs nvcc, of the CUDA toolkit; no GPU")
def test_what_one_machine_built_another_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = dict(list(_first_scripts().items())[:1])
    monkeypatch.setenv("FXPRUNE_CACHE_DIR", str(tmp_path))
    with pytest.raises(CodegenError, match=r"is missing: .* Build them first, .* --build-only"):
        find_library(scripts, "sm_90a")
    built = open_library(scripts, "sm_90a")
    assert find_library(scripts, "sm_90a") == built


def test_measuring_alone_takes_what_was_built(
    devices: Callable[..., list[FakeGpu]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FXPRUNE_CACHE_DIR", str(tmp_path))
    asked: list[object] = []
    devices(fast_kernels)
    open_here = backend_cuda.open_here

    def open_and_remember(target: CudaTarget, find: Find) -> tuple[str, OpenDevice]:
        asked.append(find)
        return open_here(target, find)

    monkeypatch.setattr(backend_cuda, "open_here", open_and_remember)
    tune("cuda", tmp_path / "db.jsonl", only="measure")
    assert asked == [find_library]
    tune("cuda", tmp_path / "db.jsonl")
    assert asked == [find_library, open_library]


_REFUSED: dict[str, Callable[[Path], object]] = {
    "only='both' is not known; pass 'build' or 'measure'": lambda path: tune(ARCH, path, only="both"),
    "only='build' is for GPUs": lambda path: tune("cpu", path, only="build"),
    "leave out executor": lambda path: tune(ARCH, path, executor=object()),
    "tune='default' times kernels": lambda path: compile_layers(ARCH, path, tune="default"),
    "target='torch' has no kernels to tune": lambda path: tune("torch", path),
    "Only GPUs have TF32": lambda path: tune("cpu", path, options={"precision": "tf32"}),
    "torch finds no GPU|built without CUDA": lambda path: tune(ARCH, path),
}


@pytest.mark.parametrize("message", _REFUSED)
def test_what_cannot_be_tuned_is_refused(message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedError, match=message):
        _REFUSED[message](tmp_path / "db.jsonl")


def test_every_order_of_every_tile_is_in_the_space() -> None:
    model, masks = make()
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend_cuda, "build_on_any_machine", lambda cases, target, _: seen.extend(_sizes(cases, target)))
        patch.setenv("FXPRUNE_CACHE_DIR", "unused")
        fxprune.tune(model, masks, ARCH, example_inputs=X, only="build")
    assert seen


def _sizes(cases: Mapping[object, object], target: object) -> list[int]:
    """Return the number of kernels of each trial; checks that they are all candidates in both orders."""
    trials = find_trials(cases, target, None, None)  # type: ignore[arg-type]
    for trial in trials:
        both = find_candidates(trial.work, trial.case.pattern, read_cuda_target(ARCH), every_order=True)
        assert {candidate_text(one.schedule) for one in both} == set(map(candidate_text, trial.schedules))
        assert {one.order for one in trial.schedules} == {"pixels", "blocks"}
    return [len(trial.schedules) for trial in trials]
