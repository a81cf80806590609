"""The table of the experiment, and the sentences below it."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.console import QUIET_CORES, format_machine
from benchmarks.ticket.arms import ALL_ARMS, AS_PAPER, PAPER
from benchmarks.ticket.outcome import Outcome
from benchmarks.ticket.rows import DENSE
from benchmarks.ticket.summary import Line, find_claims


def print_outcome(console: Console, outcome: Outcome) -> None:
    """Print the table and what it comes down to."""
    console.print(format_table(outcome))
    for sentence in format_sentences(outcome):
        console.print(sentence, highlight=False, soft_wrap=True)


def format_table(outcome: Outcome) -> Table:
    """Format one line an arm at the rounds at which all arms were trained."""
    preset = outcome.preset
    title = f"Tickets on {preset.data}, {preset.recipe.epochs} epochs, seeds: {len({row.seed for row in outcome.rows})}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("arm", no_wrap=True)
    headers = ["density", "accuracy %", "to dense", "winning", "|w| %", "MACs %"]
    for batch in outcome.batches:
        headers += [f"N={batch} ms", "saved %"]
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for number in (0, *preset.at):
        for line in outcome.lines:
            if line.number == number:
                table.add_row(*format_line(outcome, line))
        table.add_section()
    return table


def format_line(outcome: Outcome, line: Line) -> list[str]:
    """Format the cells of one line; times and multiply-adds of a control are those of the arm with its masks."""
    arm = ALL_ARMS.get(line.arm)
    timed = arm.mask_of if arm is not None and arm.mask_of else line.arm
    found = outcome.find(timed, line.number, max(outcome.batches, default=0))
    cells = [
        "dense" if arm is None else f"{line.number} {arm.title}",
        f"{line.density:.3f}",
        f"{100 * line.accuracy:.2f} ± {100 * line.deviation:.2f}",
        "" if arm is None else f"{100 * line.difference:+.2f} ± {100 * line.error:.2f}",
        "" if arm is None else format_winning(line),
        "" if line.held is None else f"{100 * line.held:.0f}",
        "" if found is None else f"{100 * found.macs_run / found.macs_dense:.0f}",
    ]
    for batch in outcome.batches:
        latency, saving = outcome.find(timed, line.number, batch), outcome.find_saving(timed, line.number, batch)
        cells.append("" if latency is None else f"{latency.median_ms:.3f}")
        cells.append("" if saving is None else f"{100 * saving:+.0f}")
    return cells


def format_winning(line: Line) -> str:
    """Say whether it is a winning ticket: yes, no, nearly, or no better than its control."""
    if line.winning:
        return "yes"
    return {"wins": "no, control", "matches": "matches", "loses": "no"}[line.verdict]


def format_sentences(outcome: Outcome) -> list[str]:
    """Say what was compared, whether the claim holds, and under which conditions."""
    sentences = [
        "The number before an arm is its round. to dense: mean paired difference ± its standard error. winning: yes if "
        "that is not below 0 and the control with random weights, where there is one, is beaten (no, control: it is "
        "not); matches if it is within one standard error below 0. |w|: share of the round's kept |w|. MACs: executed "
        "multiply-adds of the compiled network, stem and head included. saved: of the fastest dense engine's time; "
        "a control is as fast as the arm whose masks it has.",
    ]
    for batch in outcome.batches:
        names = {engine: outcome.find(DENSE, 0, batch, engine) for engine in ("fxprune", "eager", "torch.compile")}
        times = ", ".join(f"{name} {latency.median_ms:.3f} ms" for name, latency in names.items() if latency)
        sentences.append(f"Dense at batch {batch}: {times}.")
    sentences += [format_claim(outcome), *format_rules(outcome)]
    if outcome.other_cores is not None and outcome.other_cores > QUIET_CORES:
        sentences.append(
            f"Not a quiet machine: other processes kept {outcome.other_cores:.2f} cores busy during the timing. Do not "
            "rely on these times."
        )
    sentences.append(f"{format_machine(outcome.machine)} {outcome.minutes:.1f} minutes.")
    return sentences


def format_claim(outcome: Outcome) -> str:
    """Say whether regrouped tickets of 70 % sparsity and more match dense accuracy, and what they save."""
    lines = outcome.lines
    dense = next(line for line in lines if line.arm == DENSE)
    claims = find_claims(lines, dense)
    bound = f"dense accuracy within one standard deviation ({100 * dense.accuracy:.2f} ± {100 * dense.deviation:.2f} %)"
    if not claims:
        return f"The claim does not hold here: no regrouped ticket of 70 % sparsity or more matches {bound}."
    parts = []
    for line in claims:
        savings = [(batch, outcome.find_saving(line.arm, line.number, batch)) for batch in outcome.batches]
        text = ", ".join(f"{100 * saving:+.0f} % at N={batch}" for batch, saving in savings if saving is not None)
        sparsity = f"{100 * (1 - line.density):.0f} % sparse"
        parts.append(
            f"{ALL_ARMS[line.arm].title} of round {line.number} ({sparsity}; time saved {text or 'not timed'})"
        )
    return f"These regrouped tickets of 70 % sparsity or more match {bound}: {'; '.join(parts)}."


def format_rules(outcome: Outcome) -> list[str]:
    """Compare the default rule with the paper's at equal storage, one sentence a round."""
    lines = {(line.arm, line.number): line for line in outcome.lines}
    sentences = []
    for number in outcome.preset.at:
        ours, paper = lines.get((AS_PAPER, number)), lines.get((PAPER, number))
        if ours is None or paper is None or ours.held is None or paper.held is None:
            continue
        sentences.append(
            f"Round {number}, the same layers grouped with as many stored weights (density {ours.density:.3f} and "
            f"{paper.density:.3f}): the default rule holds {100 * ours.held:.1f} % of |w|, the paper's "
            f"{100 * paper.held:.1f} %; accuracy {100 * (ours.accuracy - paper.accuracy):+.2f}."
        )
    return sentences
