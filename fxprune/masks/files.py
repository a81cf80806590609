"""Read files without running code from them: torch files (weights only), safetensors, npz, and folders of them."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy._core import multiarray
from safetensors import SafetensorError, safe_open

from fxprune.errors import MaskError

TORCH_SUFFIXES = (".pt", ".pth", ".tar", ".ckpt", ".bin")
"""Ends of the names of files that `torch.save` wrote."""

INDEX = "model.safetensors.index.json"
"""The index of a model in several safetensors files (Hugging Face)."""

_MOST_BYTES = 1 << 26
"""The index of the largest models is some megabytes of text; a file above this size is none."""

_PLAIN_GLOBALS = [
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    multiarray._reconstruct,
    multiarray.scalar,
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
]
"""Types without code that checkpoints hold beside tensors: arguments, NumPy arrays and numbers."""

_BROKEN = (
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    OSError,
    struct.error,
    zlib.error,
)
"""What the readers raise on files that are cut off or damaged."""


def read_source(path: Path, *, trusted: bool) -> object:
    """Return what a file or folder holds.

    Args:
        path: A file with a known suffix, or a folder with `mask.pth` or safetensors files.
        trusted: Unpickle a torch file even if that can run code.

    Raises:
        MaskError: There is no such file, its kind is not known, it is damaged, or reading it could run code.
    """
    try:
        if path.is_dir():
            return _read_folder(path, trusted=trusted)
        if path.name.endswith(".index.json"):
            return _read_index(path)
        if not path.is_file():
            raise MaskError(f"There is no file {str(path)!r}. Check the path; relative paths start at {Path.cwd()}.")
        return _find_reader(path, trusted=trusted)(path)
    except PermissionError as error:
        raise MaskError(f"{str(path)!r} cannot be read: permission denied.") from error


def _find_reader(path: Path, *, trusted: bool) -> Callable[[Path], object]:
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _read_safetensors
    if suffix == ".npz":
        return _read_npz
    if suffix in TORCH_SUFFIXES:
        return lambda file: _read_torch(file, trusted=trusted)
    raise MaskError(
        f"{str(path)!r} ends in {suffix or 'no suffix'}; masks are read from {', '.join(TORCH_SUFFIXES)}, "
        ".safetensors, .npz, and folders of them."
    )


def _read_folder(path: Path, *, trusted: bool) -> object:
    """Read `mask.pth` (open_lth), an index, all safetensors files, or `pytorch_model.bin`, in this order."""
    for name in ("mask.pth", INDEX, "pytorch_model.bin"):
        if name == "pytorch_model.bin" and sorted(path.glob("*.safetensors")):
            return _merge([(file.name, _read_safetensors(file)) for file in sorted(path.glob("*.safetensors"))])
        if (path / name).is_file():
            return read_source(path / name, trusted=trusted)
    raise MaskError(
        f"The folder {str(path)!r} has no mask.pth, no safetensors file and no pytorch_model.bin; name the file itself."
    )


def _read_index(path: Path) -> dict[str, torch.Tensor]:
    """Read the files that an index names; only plain names of files beside it are opened."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise MaskError(f"{str(path)!r} is too large to be an index of files.")
        files = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise MaskError(f"{str(path)!r} is no index of files (needs the key 'weight_map'): {error}.") from error
    for name in files:
        plain = isinstance(name, str) and name == os.path.basename(name) and "\\" not in name
        if not plain or not name.endswith(".safetensors"):
            raise MaskError(
                f"{str(path)!r} names the file {name!r}; only plain names of safetensors files beside it are opened."
            )
    return _merge([(name, _read_safetensors(path.parent / name)) for name in sorted(files)])


def _merge(parts: list[tuple[str, dict[str, torch.Tensor]]]) -> dict[str, torch.Tensor]:
    merged: dict[str, torch.Tensor] = {}
    for name, tensors in parts:
        twice = merged.keys() & tensors.keys()
        if twice:
            raise MaskError(f"{min(twice)!r} is in {name!r} and in another file of the folder; name one file.")
        merged |= tensors
    return merged


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            convention = (file.metadata() or {}).get("convention", "keep")
            if convention != "keep":
                raise MaskError(f"{str(path)!r} says that its convention is {convention!r}; only 'keep' is written.")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except SafetensorError as error:
        raise MaskError(f"{str(path)!r} is no whole safetensors file: {error}.") from error
    except _BROKEN as error:
        raise MaskError(f"{str(path)!r} cannot be read as safetensors: {error}.") from error


def _read_npz(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, pickle.UnpicklingError, *_BROKEN) as error:
        raise MaskError(
            f"{str(path)!r} is no whole .npz file of plain arrays: {error}. Arrays of Python objects are not read, for "
            "that would run code."
        ) from error


def _read_torch(path: Path, *, trusted: bool) -> object:
    try:
        if trusted:
            return torch.load(path, map_location="cpu", weights_only=False)
        with torch.serialization.safe_globals(_PLAIN_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise MaskError(_explain_unsafe(path, error)) from error
    except (zipfile.BadZipFile, ModuleNotFoundError, *_BROKEN) as error:
        raise MaskError(f"{str(path)!r} is no whole file of torch.save: {_first_line(error)}.") from error


def _explain_unsafe(path: Path, error: Exception) -> str:
    """Say which types the file holds that would run code, and how to convert it."""
    names = _find_unsafe(path)
    if not names:
        return f"{str(path)!r} is no whole file of torch.save: {_first_line(error)}."
    if set(names) <= {"collections.defaultdict", "builtins.dict"}:
        return (
            f"{str(path)!r} holds a defaultdict, which cannot be read without running code from the file. Convert it "
            "where it was made: torch.save({key: dict(value) if isinstance(value, dict) else value for key, value in "
            "dict(masks).items()}, path); or pass trusted=True if you trust the file."
        )
    return (
        f"{str(path)!r} holds {', '.join(names[:5])}, which would run code from the file; a whole module is never "
        "read. Save its state_dict() or a plain dict of tensors; or pass trusted=True if you trust the file."
    )


def _find_unsafe(path: Path) -> list[str]:
    try:
        with torch.serialization.safe_globals(_PLAIN_GLOBALS):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(path.read_bytes())))
    except (pickle.UnpicklingError, zipfile.BadZipFile, *_BROKEN):
        return []


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
