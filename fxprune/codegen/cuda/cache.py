"""Built kernels on disk, in the folder that FXPRUNE_CACHE_DIR names; without it nothing is kept.

A library is found again by what it is made from: the texts of its kernels, the architecture, and TVM's version. So
what one machine compiled another one runs without TVM's compiler and without nvcc. Whoever can write to the folder
decides what runs.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from fxprune.codegen.cuda.build import CudaLibrary, build_library
from fxprune.errors import CodegenError, UnsupportedError

CACHE_VARIABLE = "FXPRUNE_CACHE_DIR"


def open_library(scripts: Mapping[str, str], arch: str) -> CudaLibrary:
    """Return the library of some kernels, from the cache if it is there, else compiled and kept there.

    Args:
        scripts: TVMScript of each function by its global symbol.
        arch: e.g. "sm_90a".

    Raises:
        CodegenError: TVM or nvcc refuses.
        ArtifactError: The file in the cache is damaged.
        UnsupportedError: The folder cannot be written.
    """
    folder = os.environ.get(CACHE_VARIABLE, "")
    if not folder:
        return build_library(scripts, arch)
    path = Path(folder) / _file_name(scripts, arch)
    if path.exists():
        return CudaLibrary.from_binary(path.read_bytes())
    library = build_library(scripts, arch)
    try:
        _write(path, library.binary)
    except OSError as error:
        raise UnsupportedError(
            f"{CACHE_VARIABLE}={folder!r}: {path.name} cannot be written ({error}). Name a folder that can be written."
        ) from error
    return library


def find_library(scripts: Mapping[str, str], arch: str) -> CudaLibrary:
    """Return the library of some kernels from the cache; nothing is compiled.

    Args:
        scripts: TVMScript of each function by its global symbol.
        arch: e.g. "sm_90a".

    Raises:
        CodegenError: It is not there.
        ArtifactError: The file in the cache is damaged.
    """
    path = Path(check_cache()) / _file_name(scripts, arch)
    if not path.exists():
        raise CodegenError(
            f"'{path}' is missing: these kernels were not built for {arch} into this folder by this version of fxprune "
            "and TVM. Build them first, on a machine with nvcc, with the same model, masks, inputs and options "
            "(fxprune tune --build-only), and copy its folder here."
        )
    return CudaLibrary.from_binary(path.read_bytes())


def check_cache() -> str:
    """Return the folder of built kernels.

    Raises:
        UnsupportedError: None is named.
    """
    folder = os.environ.get(CACHE_VARIABLE, "")
    if not folder:
        raise UnsupportedError(
            f"{CACHE_VARIABLE} is not set; it names the folder through which kernels get from the machine that builds "
            "them to the one that measures them."
        )
    return folder


def _file_name(scripts: Mapping[str, str], arch: str) -> str:
    facts = [arch, importlib.metadata.version("apache-tvm"), sorted(scripts.items())]
    return f"cuda-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()}.bin"


def _write(path: Path, binary: bytes) -> None:
    """Write a file that is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(binary)
    Path(file.name).replace(path)
