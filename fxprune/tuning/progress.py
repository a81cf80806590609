"""What a search has done so far, and a line on the terminal that shows it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn


@dataclass(frozen=True)
class Standing:
    """How far a search is.

    Attributes:
        done: Trials that ended.
        total: Trials in all.
        failed: Trials whose candidate cannot run.
        best_us: Time of all layers with the best of each found so far, microseconds; dense where that is best.
        dense_us: Their time on dense torch.
        seconds: How long it has searched.
    """

    done: int
    total: int
    failed: int
    best_us: float
    dense_us: float
    seconds: float

    @property
    def seconds_left(self) -> float | None:
        """Predict how long the rest takes at the rate so far; None before the first trial."""
        return self.seconds / self.done * (self.total - self.done) if self.done else None

    def __str__(self) -> str:
        """Trials, best so far, time left."""
        left = "" if self.seconds_left is None else f", {self.seconds_left:.0f} s left"
        share = f" ({self.dense_us / self.best_us:.2f}x)" if self.best_us else ""
        failed = f", {self.failed} failed" if self.failed else ""
        return (
            f"{self.done}/{self.total} trials{failed}, layers {self.dense_us / 1e3:.2f} -> {self.best_us / 1e3:.2f} ms"
            f"{share}{left}"
        )


Show = Callable[[Standing], None]
"""Is told of every step of a search."""


class TerminalProgress:
    """A line on standard error; silent where that is no terminal."""

    def __init__(self) -> None:
        """Find out what standard error is."""
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        if sys.stderr.isatty():
            self._progress = Progress(
                TextColumn("tuning"), BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True)
            )

    def __enter__(self) -> Self:
        """Begin."""
        if self._progress is not None:
            self._progress.start()
            self._task = self._progress.add_task("", total=None)
        return self

    def __call__(self, standing: Standing) -> None:
        """Show a step."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=standing.done, total=standing.total, description=str(standing))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last line standing."""
        if self._progress is not None:
            self._progress.stop()
