"""The demonstration: ResNet-50 with 80 % of its weights masked, and a small ticket that was found on real images.

Both are compiled, checked and raced against dense engines.

Example:
    python -m benchmarks.demo
"""

from __future__ import annotations

import os
import sys

from rich.console import Console

from benchmarks.case import Case
from benchmarks.console import format_machine, make_on_step, open_progress, print_case
from benchmarks.measure import Bench
from benchmarks.peers import PEERS, BuiltPeer, CompiledForward
from benchmarks.result import CaseResult, start_run
from benchmarks.ticket.show import show_ticket
from benchmarks.timing import Schedule
from fxprune.errors import FxpruneError

CASE = Case("resnet50", 1, "rowgroup", 0.8, rows=32)
"""What is shown: row groups of 32, batch 1."""

TICKET_BATCH = 64
"""Images a call of the ticket: it is so small that a single image takes microseconds."""


def main() -> int:
    """Run the demonstration; return 0 if fxprune ran and its output is right."""
    console = Console()
    run = start_run(min(2, len(os.sched_getaffinity(0))), Schedule(rounds=10))
    bench = Bench(PEERS, run.threads, run.schedule)
    console.print(f"{CASE.label}: random weights, the stem and the last linear layer stay dense.")
    with open_progress(console) as progress:
        result, built = bench.measure(CASE, make_on_step(progress, bench.count_steps()))
    print_report(console, built)
    print_check(console, result)
    print_case(console, result)
    print_ticket(console, run.threads)
    console.print(format_machine(run), highlight=False, soft_wrap=True)
    return 0 if "fxprune" in built else 1


def print_ticket(console: Console, threads: int) -> None:
    """Show the ticket that lies with the code, or say why it cannot be shown."""
    try:
        show_ticket(console, TICKET_BATCH, threads)
    except FxpruneError as error:
        console.print(f"The ticket was not shown: {error}", highlight=False, markup=False, soft_wrap=True)
    console.print()


def print_report(console: Console, built: dict[str, BuiltPeer]) -> None:
    """Print what the compiler did to every layer."""
    if "fxprune" in built and isinstance(forward := built["fxprune"].forward, CompiledForward):
        console.print(str(forward.compiled.report), highlight=False, markup=False, soft_wrap=True)
        console.print()


def print_check(console: Console, result: CaseResult) -> None:
    """Print how far the compiled output is from PyTorch's."""
    error = next((peer.error for peer in result.peers if peer.name == "fxprune"), None)
    if error is not None:
        verdict = "max |diff| / max |y| against the masked model in PyTorch (float64)"
        console.print(f"Check: {verdict} = {error:.1e}; allowed 1e-05.", highlight=False)
        console.print()


if __name__ == "__main__":
    sys.exit(main())
