"""What every test shares: fixed seeds, two threads, golden files, hypothesis profiles."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from fxprune.codegen.cuda.build import CudaLibrary

settings.register_profile("ci", max_examples=40, derandomize=True, database=None, deadline=None)
settings.register_profile("long", max_examples=400, deadline=None)
settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files instead of comparing")


def pytest_configure() -> None:
    gc.set_threshold(100_000, 20, 50)  # a capture makes so many objects that collecting takes a third of its time


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # every compilation collects, and what was loaded by now stays


@pytest.fixture(autouse=True, scope="module")
def torch_threads() -> None:
    """Let torch use two threads, whatever the files before have set."""
    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed every generator in use; returns the seed."""
    random.seed(0)
    torch.manual_seed(0)
    return 0


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the records of each test apart from the user's; returns their folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FXPRUNE_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def all_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let dense torch look slow on GPUs."""
    monkeypatch.setattr("fxprune.lowering.cuda.select.predict_dense_us", lambda *_: 1e9)


@pytest.fixture
def no_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the machine code out: the twins run, or the text does, or only the choice matters."""
    monkeypatch.setattr("fxprune.lowering.cuda.lower.build_or_find", lambda _, arch: CudaLibrary(arch, (), {}))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Return `check(name, text)`, which compares a text with `golden/<name>.txt` beside the test file."""
    folder = Path(request.path).parent / "golden"
    update = bool(request.config.getoption("--update-golden"))

    def check(name: str, text: str) -> None:
        path = folder / f"{name}.txt"
        if update:
            folder.mkdir(exist_ok=True)
            path.write_text(text.rstrip("\n") + "\n")
        assert path.exists(), f"{path} is missing; write it with pytest --update-golden"
        assert text.rstrip("\n") + "\n" == path.read_text()

    return check
