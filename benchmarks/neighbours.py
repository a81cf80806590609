"""See whether other processes use the cores while a benchmark runs."""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")
_BUSY_FIELDS = (0, 1, 2, 5, 6, 7)
"""Columns of the "cpu" line of /proc/stat, proc(5): user, nice, system, irq, softirq, steal."""


class NeighbourWatch:
    """Measures from its making on how many cores were kept busy by others, on average.

    Reads the processor time of the whole machine and takes off that of this process. A second process that computes
    all the time stretches every median by the same factor; neither their spread nor a best time shows it.
    """

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._others = _read_others_seconds()

    def read_cores(self) -> float | None:
        """Return the cores that others kept busy, e.g. 0.5; None where the system does not tell."""
        now = _read_others_seconds()
        if now is None or self._others is None:
            return None
        return max(0.0, (now - self._others) / max(1e-9, time.perf_counter() - self._wall))


def parse_busy_seconds(stat: str, ticks_per_second: int) -> float:
    """Return the busy processor time of the whole machine from the text of /proc/stat, in seconds.

    Raises:
        ValueError: The text has no line for all processors.
    """
    name, *ticks = stat.partition("\n")[0].split()
    if name != "cpu":
        raise ValueError(f"/proc/stat begins with {name!r}; expected the line 'cpu' of all processors")
    return sum(int(ticks[field]) for field in _BUSY_FIELDS) / ticks_per_second


def _read_others_seconds() -> float | None:
    if not _STAT.exists():
        return None
    own = os.times()
    return parse_busy_seconds(_STAT.read_text(), os.sysconf("SC_CLK_TCK")) - own.user - own.system
