"""The progress bar of a training: one line, and none where nobody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def show_epochs(name: str, first: int, epochs: int, console: Console | None) -> Iterator[Callable[[int, float], None]]:
    """Show a bar over the epochs of one training; it vanishes at the end.

    Args:
        name: What is trained.
        first: Epochs done before.
        epochs: Epochs in all.
        console: Where it is shown; None, or one that is no terminal: nowhere.

    Yields:
        A function that is told the epochs done and the mean loss of the last one.
    """
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = console is not None and console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        task = progress.add_task(name, total=epochs, completed=first)
        yield lambda done, loss: progress.update(task, completed=done, description=f"{name}, loss {loss:.3f}")
