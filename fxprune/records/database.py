"""All records in one file, a line each: any number of processes write to it, and any of them may be killed.

A record is one `write` at the end of the file under a lock that dies with its process, and it is on the disk before
`add` returns. A line that was cut off by a kill ends where the next writer begins a line of its own. Lines that cannot
be read are skipped, with one warning a reading.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fxprune.errors import UnsupportedError
from fxprune.records.record import Context, Record, read_record, write_record

logger = logging.getLogger(__name__)

_PRIVATE = 0o700
"""A folder that is made for the database is the user's alone: its records decide which code runs."""


class Database:
    """Records by context, workload and candidate.

    Attributes:
        path: The file; it and its folder are made with the first record.
    """

    def __init__(self, path: Path) -> None:
        """Open a database.

        Args:
            path: The file.
        """
        self.path = path

    def read(self, context: Context) -> dict[str, dict[str, Record]]:
        """Return the latest record of every candidate of every workload that was measured in a context.

        Args:
            context: Only its records count.

        Raises:
            UnsupportedError: The file cannot be opened.
        """
        found: dict[str, dict[str, Record]] = {}
        for record in self._records():
            if record.context == context:
                found.setdefault(record.workload, {})[record.candidate] = record
        return found

    def find_last(self, target: str, kernels: str) -> Context | None:
        """Return the context of the latest record for a target, on whatever device it was measured.

        Args:
            target: The target, as text.
            kernels: Digest of the code that writes kernels.

        Raises:
            UnsupportedError: The file cannot be opened.
        """
        last = None
        for record in self._records():
            if (record.context.target, record.context.kernels) == (target, kernels):
                last = record.context
        return last

    def add(self, records: Sequence[Record]) -> None:
        """Write records; they are on the disk when this returns.

        Raises:
            UnsupportedError: The file cannot be written.
        """
        with self._refusing("written"):
            self.path.parent.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                _append(handle, b"".join(map(write_record, records)))
                os.fsync(handle)
            finally:
                os.close(handle)  # and with it the lock

    def _records(self) -> Iterator[Record]:
        """Yield what can be read, the oldest first."""
        skipped = 0
        for line in self._lines():
            record = read_record(line)
            if record is None:
                skipped += 1
            else:
                yield record
        if skipped:
            logger.warning("%s: %d unreadable records are skipped", self.path, skipped)

    def _lines(self) -> list[bytes]:
        with self._refusing("read"):
            if not self.path.exists():
                return []
            with self.path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)
                return [line for line in file.read().split(b"\n") if line]

    @contextlib.contextmanager
    def _refusing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UnsupportedError(
                f"The tuning database '{self.path}' cannot be {what}: {error.strerror or error}. Pass another path as "
                "database=, or set FXPRUNE_CACHE_DIR."
            ) from error


def _append(handle: int, data: bytes) -> None:
    """Write lines at the end of a locked file, after a line that was cut off."""
    size = os.fstat(handle).st_size
    if size and os.pread(handle, 1, size - 1) != b"\n":
        data = b"\n" + data
    while data:
        data = data[os.write(handle, data) :]
