"""Measure alone: on one machine nobody builds while somebody measures, whatever process they are in."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_LOCK = Path(tempfile.gettempdir()) / f"fxprune-{os.getuid()}.lock"
"""Held by all who build, or by the one who measures; a lock ends with its process."""


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Build beside others who build."""
    with _holding(fcntl.LOCK_SH):
        yield


@contextlib.contextmanager
def measuring() -> Iterator[None]:
    """Measure while nobody else builds or measures."""
    with _holding(fcntl.LOCK_EX):
        yield


@contextlib.contextmanager
def _holding(kind: int) -> Iterator[None]:
    handle = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)
