"""Files that are whole or absent: a kill at any moment leaves the last complete one."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch

from fxprune.errors import ArtifactError

Payload = dict[str, object]
"""What a file holds: tensors, numbers, text, and lists and mappings of these."""


def write_file(path: Path, payload: Payload) -> None:
    """Write a file beside its place and move it there in one step, through to the disk.

    Args:
        path: Where it goes; its folder must exist.
        payload: What it holds.
    """
    draft = path.with_name(f"{path.name}.part")
    with draft.open("wb") as file:
        torch.save(payload, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_file(path: Path) -> Payload | None:
    """Read a file that `write_file` wrote, without unpickling anything but plain data; None if there is none.

    Raises:
        ArtifactError: The file is damaged, or holds more than plain data.
    """
    if not path.exists():
        return None
    try:
        payload: Payload = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ArtifactError(
            f"{path} holds more than tensors, numbers and text ({_first_line(error)}). The state of the optimizer, "
            "scheduler, loader or step must be plain data to be resumed from."
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be read ({_first_line(error)}); it was not written whole.") from error
    return payload


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make the folder and hold it for this process alone; the system lets go of it when the process ends.

    Raises:
        ArtifactError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtifactError(f"{folder} is in use by another process; wait or take another folder.") from error
        yield


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
