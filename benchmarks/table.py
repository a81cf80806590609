"""Results as text: one table a case."""

from __future__ import annotations

from rich.table import Table

from benchmarks.result import CaseResult


def format_table(result: CaseResult) -> Table:
    """Format one case: median, best, ratio to fxprune and error of every engine."""
    table = Table(title=result.case.label, title_justify="left", caption=format_summary(result), caption_justify="left")
    table.add_column("engine")
    table.add_column("median ms", justify="right")
    table.add_column("best ms", justify="right")
    alone = any(peer.alone_ms is not None for peer in result.peers)
    if alone:
        table.add_column("alone ms", justify="right")
    table.add_column("fxprune is", justify="right")
    table.add_column("max |diff| / max |y|", justify="right")
    table.add_column("built in s", justify="right")
    table.add_column("settings, or why it did not run")
    for peer in result.peers:
        table.add_row(
            peer.title,
            _format_ms(peer.median_ms),
            _format_ms(peer.best_ms),
            *([_format_ms(peer.alone_ms)] if alone else []),
            _format_ratio(result.ratio(peer) if peer.dense else None),
            "-" if peer.error is None else f"{peer.error:.1e}",
            f"{peer.build_seconds:.1f}" if peer.build_seconds else "-",
            peer.reason or peer.settings,
        )
    return table


def format_summary(result: CaseResult) -> str:
    """Format the sentence that a case comes down to."""
    limit = (
        f"Limit from MACs {result.limit:.2f}x ({result.macs_dense / 1e9:.2f} G dense, "
        f"{result.macs_kept / 1e9:.2f} G kept; density of the masked layers {result.density:.3f})."
    )
    fastest = result.fastest_dense()
    missing = [peer.title for peer in result.peers if peer.dense and peer.median_ms is None]
    if fastest is None:
        return f"No dense peer ran. {limit}"
    among = f" of those that ran ({', '.join(missing)} did not)" if missing else ""
    ratio, to_eager = result.ratio(fastest), result.ratio(result.find("eager"))
    if ratio is None:
        return f"Fastest dense fp32 peer{among}: {fastest.title}. {limit}"
    eager = "" if to_eager is None else f", {to_eager:.2f}x torch eager channels_last"
    return f"fxprune: {ratio:.2f}x {fastest.title}, the fastest dense fp32 peer{among}{eager}. {limit}"


def _format_ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _format_ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"
