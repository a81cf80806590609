"""Built kernels on disk: found again by what they are made from, and by nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from fxprune.codegen.cuda.build import CudaLibrary
from fxprune.codegen.cuda.cache import CACHE_VARIABLE, open_library
from fxprune.codegen.cuda.nvcc import DeviceCode
from fxprune.errors import ArtifactError, UnsupportedError

SCRIPTS = {"a": "text of a", "b": "text of b"}


@pytest.fixture(autouse=True)
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count what is built."""
    built: list[str] = []

    def build(scripts: Mapping[str, str], arch: str) -> CudaLibrary:
        built.append(arch)
        return CudaLibrary(arch, (DeviceCode(arch, (13, 0), repr(sorted(scripts)).encode(), {}),), {})

    monkeypatch.setattr("fxprune.codegen.cuda.cache.build_library", build)
    return built


def test_without_the_variable_nothing_is_kept(builds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    assert open_library(SCRIPTS, "sm_80") == open_library(SCRIPTS, "sm_80")
    assert len(builds) == 2


def test_a_library_is_built_once(builds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "new"))
    first = open_library(SCRIPTS, "sm_80")
    assert open_library(dict(reversed(SCRIPTS.items())), "sm_80") == first
    assert builds == ["sm_80"]
    open_library(SCRIPTS, "sm_86")
    open_library({**SCRIPTS, "b": "another text"}, "sm_80")
    assert builds == ["sm_80", "sm_86", "sm_80"]
    assert len(list((tmp_path / "new").iterdir())) == 3


def test_a_damaged_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    open_library(SCRIPTS, "sm_80")
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ArtifactError, match="are no library of CUDA kernels"):
        open_library(SCRIPTS, "sm_80")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(UnsupportedError, match=r"FXPRUNE_CACHE_DIR=.*cannot be written"):
        open_library(SCRIPTS, "sm_80")
