"""Where the database lies: the `database` argument, FXPRUNE_CACHE_DIR, or the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path

from fxprune.errors import UnsupportedError

_NAME = "records.jsonl"


def find_database(database: str | os.PathLike[str] | None) -> Path:
    """Return the path of the database file, which need not exist.

    Args:
        database: A file; None = `records.jsonl` in the folder that FXPRUNE_CACHE_DIR names, else in the user's cache.

    Raises:
        UnsupportedError: It is no path, or a folder.
    """
    if database is None:
        folder = os.environ.get("FXPRUNE_CACHE_DIR")
        return (Path(folder).expanduser() if folder else user_cache_path("fxprune")) / _NAME
    if not isinstance(database, (str, os.PathLike)) or not str(database):
        raise UnsupportedError(f"database={database!r} is no path; pass the path of a file such as 'records.jsonl'.")
    path = Path(database).expanduser()
    if path.is_dir():
        raise UnsupportedError(f"database='{path}' is a folder; pass a file in it, e.g. '{path / _NAME}'.")
    return path
