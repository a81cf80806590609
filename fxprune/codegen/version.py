"""The version of the kernels: measured times belong to the code that wrote and launched what was measured."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

_FOLDER = Path(__file__).parent
_DIGITS = 16


@functools.cache
def kernel_version() -> str:
    """Return a digest of every file of this package."""
    digest = hashlib.sha256()
    for path in sorted(path for path in _FOLDER.rglob("*") if path.suffix in (".py", ".cc", ".cu")):
        digest.update(str(path.relative_to(_FOLDER)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:_DIGITS]
