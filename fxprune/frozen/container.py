"""One file of named members: a zip without compression, every member's digest in a manifest; written all or nothing."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from fxprune.errors import ArtifactError

_MANIFEST = "manifest.json"
_MARK = b"fxprune "
"""The zip's comment: this, then the digest of the manifest."""

_BROKEN = (zipfile.BadZipFile, EOFError, KeyError, ValueError, NotImplementedError, RuntimeError, RecursionError)
"""What the zip reader and JSON raise on damaged files."""


def write_container(path: Path, facts: Mapping[str, object], members: Mapping[str, bytes]) -> None:
    """Write a file so that at any moment the path holds what it held before or the whole new file.

    Args:
        path: Where to; a file there is replaced.
        facts: JSON for the manifest.
        members: The contents by name.

    Raises:
        ArtifactError: The folder does not exist or cannot be written to.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            _write_zip(file, facts, members)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise ArtifactError(
            f"'{path}' cannot be written: {error.strerror or error}. Choose a folder that exists and has room."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _write_zip(file: IO[bytes], facts: Mapping[str, object], members: Mapping[str, bytes]) -> None:
    listed = {name: {"bytes": len(data), "sha256": _digest(data)} for name, data in members.items()}
    manifest = json.dumps({**facts, "members": listed}, indent=1).encode()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = _MARK + _digest(manifest).encode()
        for name, data in ((_MANIFEST, manifest), *members.items()):
            archive.writestr(zipfile.ZipInfo(name), data)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Container:
    """An open file; nothing in it has run, every member is checked as it is read.

    Attributes:
        path: The file.
        manifest: What `write_container` was given as facts, and the members.
    """

    def __init__(self, path: Path) -> None:
        """Open a file and check its manifest.

        Raises:
            ArtifactError: There is no such file, it is not ours, or it is damaged.
        """
        self.path = path
        try:
            self._data = path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"'{path}' cannot be read: {error.strerror}. Check the path.") from error
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(self._data))
            text = self._read(_MANIFEST)
        except _BROKEN as error:
            raise self._damaged(f"it is no whole zip file ({error})") from error
        if not self._archive.comment.startswith(_MARK):
            raise ArtifactError(f"'{path}' was not written by fxprune's save. Pass a file that compiled.save wrote.")
        if self._archive.comment != _MARK + _digest(text).encode():
            raise self._damaged("its manifest does not have the digest that was written with it")
        self.manifest: dict[str, object] = json.loads(text)

    def read(self, name: str) -> bytes:
        """Return a member.

        Raises:
            ArtifactError: It is missing or not what was written.
        """
        listed = self.manifest.get("members")
        entry = listed.get(name) if isinstance(listed, dict) else None
        try:
            data = self._read(name)
        except _BROKEN as error:
            raise self._damaged(f"its member {name!r} cannot be read ({error})") from error
        if not isinstance(entry, dict) or entry.get("sha256") != _digest(data):
            raise self._damaged(f"its member {name!r} does not have the digest that was written with it")
        return data

    def _read(self, name: str) -> bytes:
        info = self._archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(self._data):
            raise zipfile.BadZipFile(f"{name} is compressed")
        return self._archive.read(info)

    def _damaged(self, what: str) -> ArtifactError:
        return ArtifactError(f"'{self.path}' is damaged or cut off: {what}. Copy it again, or save the model again.")
