"""Dumps and log lines for people who want to see every step, driven by FXPRUNE_DUMP and FXPRUNE_LOG.

This is the one place that reads the two variables. A library sets up no logging; FXPRUNE_LOG is the user asking for it.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from fxprune.errors import UnsupportedError

DUMP_VARIABLE = "FXPRUNE_DUMP"
LOG_VARIABLE = "FXPRUNE_LOG"
LOG_LEVELS = ("debug", "info", "warning", "error")

_HANDLER_NAME = "fxprune.FXPRUNE_LOG"

logger = logging.getLogger(__name__)


def find_dump_folder() -> Path | None:
    """Return the folder that FXPRUNE_DUMP names, or None if it is not set.

    Raises:
        UnsupportedError: It names something that exists and is not a folder.
    """
    text = os.environ.get(DUMP_VARIABLE, "")
    if not text:
        return None
    folder = Path(text)
    if folder.exists() and not folder.is_dir():
        raise UnsupportedError(
            f"{DUMP_VARIABLE}={text!r} is a file; it needs the path of a folder (made if it does not exist). "
            "Give it another path or unset it."
        )
    return folder


def dump_text(name: str, text: str) -> None:
    """Write a text file into the dump folder; without FXPRUNE_DUMP nothing happens.

    Args:
        name: File name, e.g. "001_fold_batch_norm.txt"; a file of that name is replaced.
        text: The whole content; a newline is added at the end.

    Raises:
        UnsupportedError: The folder cannot be made or written.
    """
    folder = find_dump_folder()
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise UnsupportedError(
            f"{DUMP_VARIABLE}={str(folder)!r}: {name} cannot be written ({error}). Name a folder that can be written."
        ) from error
    logger.debug("dumped %s", name)


def find_log_level() -> int | None:
    """Return the level that FXPRUNE_LOG asks for, or None if it is not set.

    Raises:
        UnsupportedError: It is none of `LOG_LEVELS`.
    """
    text = os.environ.get(LOG_VARIABLE, "")
    if not text:
        return None
    if text.lower() not in LOG_LEVELS:
        raise UnsupportedError(f"{LOG_VARIABLE}={text!r} is no level; it needs one of {', '.join(LOG_LEVELS)}.")
    return int(getattr(logging, text.upper()))


def configure_logging() -> None:
    """Show fxprune's log lines on stderr at the level FXPRUNE_LOG asks for; without it nothing is touched.

    Raises:
        UnsupportedError: FXPRUNE_LOG is none of `LOG_LEVELS`.
    """
    level = find_log_level()
    package = logging.getLogger("fxprune")
    handlers = [handler for handler in package.handlers if handler.name == _HANDLER_NAME]
    if level is None:
        return
    if not handlers:
        handler = logging.StreamHandler()
        handler.set_name(_HANDLER_NAME)
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        package.addHandler(handler)
    package.setLevel(level)
