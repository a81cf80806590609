"""A model compiled for a GPU in a file: machine code made here, run elsewhere; the twins stand for elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune import CompiledModule
from fxprune.codegen.cuda.build import CudaLibrary
from fxprune.codegen.cuda.nvcc import DeviceCode, find_nvcc
from fxprune.errors import ArtifactError, UnsupportedError
from tests.compiling import TOLERANCE, Layers, Masks, draw_masks, largest_difference, row_groups, run_masked
from tests.lowering.cuda.emulated import tie_to_emulator
from tests.lowering.cuda.twin import program_of, tie_to_twin
from tests.networks import Function, randomise_norms

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("all_kernels")

ARCH = {"kind": "cuda", "arch": "sm_90a"}
X = torch.linspace(-2, 2, 2 * 3 * 12 * 12).sin().reshape(2, 3, 12, 12)
CODE = b"\x7fELF stands for machine code"


def _forward(net: Layers, x: torch.Tensor) -> torch.Tensor:
    hidden = torch.relu(net.norm(net.stem(x)))
    hidden = torch.relu(net.conv(hidden) + hidden)
    return net.classifier(hidden.mean((2, 3)))


def network() -> tuple[nn.Module, Masks]:
    torch.manual_seed(3)
    model = Function(
        _forward,
        stem=nn.Conv2d(3, 32, 3, padding=1),
        norm=nn.BatchNorm2d(32),
        conv=nn.Conv2d(32, 32, 3, padding=1),
        classifier=nn.Linear(32, 10),
    )
    return randomise_norms(model.eval()), draw_masks(model, row_groups(16))


def _no_build(scripts: object, arch: str) -> CudaLibrary:
    del scripts
    return CudaLibrary(arch, (DeviceCode(arch, (13, 0), CODE, {}),), {})


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> CompiledModule:
    monkeypatch.setattr("fxprune.lowering.cuda.lower.build_or_find", _no_build)
    model, masks = network()
    return fxprune.compile(model, masks, ARCH, example_inputs=X)


@pytest.fixture
def saved(compiled: CompiledModule, tmp_path: Path) -> Path:
    path = tmp_path / "model.fxp"
    compiled.save(path)
    return path


def test_a_loaded_model_computes_what_the_saved_one_does(
    compiled: CompiledModule, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("nothing is compiled where a file is loaded")

    monkeypatch.setattr("fxprune.lowering.cuda.lower.build_or_find", refuse)
    loaded = fxprune.load(saved)
    library = program_of(loaded).library
    assert library is not None
    assert [part.cubin for part in library.parts] == [CODE]
    tie_to_twin(loaded)
    tie_to_twin(compiled)
    assert torch.equal(loaded(X), compiled(X))
    assert largest_difference(loaded(X), run_masked(*network(), X)) <= TOLERANCE
    assert loaded.report == compiled.report
    assert loaded.masks.keys() == compiled.masks.keys()


def test_a_model_in_16_bits_is_loaded_as_it_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.lowering.cuda.lower.build_or_find", _no_build)
    model, masks = network()
    x = X.to(torch.bfloat16)
    compiled = fxprune.compile(model.to(torch.bfloat16), masks, ARCH, example_inputs=x)
    compiled.save(tmp_path / "model.fxp")
    loaded = fxprune.load(tmp_path / "model.fxp")
    kernels = [step.kernel for step in program_of(loaded).parts.steps]
    assert [str(kernel.schedule).split()[0] for kernel in kernels] == ["tensor"] * 3
    assert loaded.report == compiled.report
    tie_to_emulator(loaded, tmp_path)
    assert largest_difference(loaded(x), run_masked(*network(), x)) <= 4 * torch.finfo(torch.bfloat16).eps


def test_kernels_can_be_compiled_again(saved: Path) -> None:
    loaded = fxprune.load(saved, native="rebuild")
    tie_to_twin(loaded)
    assert largest_difference(loaded(X), run_masked(*network(), X)) <= TOLERANCE


def test_a_loaded_model_can_do_without_kernels(saved: Path) -> None:
    loaded = fxprune.load(saved, native="dense")
    assert program_of(loaded).parts.steps == ()
    tie_to_twin(loaded)
    assert largest_difference(loaded(X), run_masked(*network(), X)) <= TOLERANCE
    assert loaded.report.whole_model == "dense: loaded with native='dense'"
    assert {layer.kernel for layer in loaded.report.layers} == {"dense: torch"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_loaded_model_says_that_there_is_no_gpu(saved: Path) -> None:
    loaded = fxprune.load(saved)
    with pytest.raises(UnsupportedError, match=r"compiled for a GPU \(sm_90a\) and cannot run here"):
        loaded(X)


def test_kernels_of_another_version_are_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of a kernel is what its machine code is known by."""
    monkeypatch.setattr("fxprune.codegen.cuda.columns.WARP_ROWS", 2)
    with pytest.raises(ArtifactError, match=r"are not those that this version of fxprune makes .* native='rebuild'"):
        fxprune.load(saved)


@pytest.mark.slow
@pytest.mark.skipif(find_nvcc() is None, reason="needs nvcc, of the CUDA toolkit; no GPU")
def test_machine_code_comes_back_in_a_process_without_compilers(tmp_path: Path) -> None:
    model, masks = network()
    compiled = fxprune.compile(model, masks, ARCH, example_inputs=X)
    library = program_of(compiled).library
    assert library is not None
    compiled.save(tmp_path / "model.fxp")
    program = (
        "import sys, fxprune\n"
        f"loaded = fxprune.load({str(tmp_path / 'model.fxp')!r})\n"
        "library = loaded._last().program.library\n"
        "print(library.arch, [len(part.cubin) for part in library.parts], 'tvm' in sys.modules)\n"
    )
    environment = {"PATH": "", "CUDA_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )
    expected = f"sm_90a {[len(part.cubin) for part in library.parts]} False\n"
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
