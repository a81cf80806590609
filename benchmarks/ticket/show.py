"""Show the shipped ticket: compile it, check its accuracy on real images, time it beside dense engines."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console

from benchmarks.ticket.engines import Built, build_dense, build_ticket
from benchmarks.ticket.latency import SCHEDULE
from benchmarks.ticket.preset import PRESETS
from benchmarks.ticket.shipped import ShippedTicket, load_ticket
from benchmarks.timing import time_interleaved
from fxprune.lottery import measure_accuracy
from fxprune.lottery.task import Labelled


def show_ticket(console: Console, batch: int, threads: int) -> None:
    """Compile the shipped ticket and print what it is, what it gets right, and how long it takes.

    Args:
        console: Where it is printed.
        batch: Images a call.
        threads: Threads of every engine.

    Raises:
        FxpruneError: The ticket or the package with its images is missing.
        ValueError: The compiled ticket gives a wrong output.
    """
    torch.set_num_threads(threads)
    ticket = load_ticket()
    _, tests = PRESETS[ticket.preset].read_images()
    batches = [(pixels[:batch].contiguous(), labels[:batch]) for pixels, labels in tests if len(labels) >= batch]
    x = batches[0][0]
    ours = build_ticket(ticket.model, ticket.masks, x, threads)
    engines = [ours, *build_dense(ticket.model, x)]
    for line in (*format_ticket(ticket, ours, batches), format_times(engines, batch)):
        console.print(line, highlight=False, soft_wrap=True)


def format_ticket(ticket: ShippedTicket, ours: Built, batches: Sequence[Labelled]) -> list[str]:
    """Say what the ticket is, and how often the masked and the compiled network get the labels right."""
    images = sum(len(labels) for _, labels in batches)
    masked = measure_accuracy(ticket.model, batches)
    with torch.no_grad():
        right = sum(int((ours.forward(pixels).argmax(1) == labels).sum()) for pixels, labels in batches)
    return [
        f"A ticket found on real images ({ticket.title}, {100 * (1 - ticket.density):.0f} % sparse): accuracy "
        f"{100 * ticket.accuracy:.2f} % on the test set, dense {100 * ticket.dense_accuracy:.2f} %.",
        f"On {images} test images here: masked in PyTorch {100 * masked:.2f} %, compiled {100 * right / images:.2f} %; "
        f"max |diff| / max |y| = {ours.error or 0.0:.1e}.",
    ]


def format_times(engines: Sequence[Built], batch: int) -> str:
    """Time all engines, interleaved, and say how long each takes; fxprune is the first."""
    timings = time_interleaved({engine.engine: engine for engine in engines}, SCHEDULE)
    times = ", ".join(f"{name} {timing.median_ms:.3f} ms" for name, timing in timings.items())
    ours, *dense = (timing.median_ms for timing in timings.values())
    return f"Batch {batch}: {times}; {min(dense) / ours:.2f}x the fastest dense one."
