"""The table of layers as Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.layers.figures import LayerFigures, LayerTable

_HEAD = (
    *("layers", "first", "times", "kernel", "us", "dense us", "speed-up", "useful GF/s", "of peak", "FLOP/B"),
    "wasted",
)


def format_layers(table: LayerTable, about: Mapping[str, object]) -> str:
    """Return the table, the worst five and the shares.

    Args:
        table: All figures.
        about: What was measured, and where.
    """
    lines = [
        f"# Layers of {about['model']}, {about['structure']} at sparsity {about['sparsity']}",
        "",
        f"{about['date']}, {about['cpu']}, {about['threads']} threads, float32, batch {about['batch']}; every layer by "
        f"itself, best of {about['rounds']} rounds in turns with dense torch and with `torch.mm`.",
        "",
        f"Peak: {table.peak / 1e9:.0f} GF/s, the best `torch.mm` of square matrices in the L2 cache in this run. "
        f"A copy that no cache holds moves {table.memory_rate / 1e9:.1f} GB/s, read and written; starting the threads "
        f"takes {table.launch_seconds * 1e6:.1f} us. Others kept {about['other_cores']:.1f} cores busy meanwhile. "
        "Useful: two FLOPs for each kept weight and output position; wasted: multiply-adds on stored zeros and on "
        "pixels computed twice.",
        "",
        f"**Share of peak weighted by time: {table.weighted_share(table.masked):.1%}** over the {len(table.masked)} "
        f"geometries with masks; {table.weighted_share(table.layers):.1%} with those without.",
        "",
        f"| {' | '.join(_HEAD)} |",
        f"|{'---|' * len(_HEAD)}",
        *(_format_row(table, layer) for layer in table.layers),
        "",
        "The five with the least share of peak, and where their time goes:",
        "",
        *(f"- {layer.geometry}: {table.explain(layer)}." for layer in table.worst()),
    ]
    return "\n".join(lines) + "\n"


def _format_row(table: LayerTable, layer: LayerFigures) -> str:
    cells = (
        layer.geometry,
        layer.name,
        f"{layer.count}",
        layer.kernel if layer.masked else f"{layer.kernel} (no mask)",
        f"{layer.seconds * 1e6:.1f}",
        f"{layer.dense_seconds * 1e6:.1f}",
        f"{layer.dense_seconds / layer.seconds:.2f}",
        f"{layer.rate / 1e9:.0f}",
        f"{table.share(layer):.0%}",
        f"{layer.intensity:.1f}",
        f"{layer.computed_flops / layer.flops - 1:.0%}",
    )
    return f"| {' | '.join(cells)} |"
