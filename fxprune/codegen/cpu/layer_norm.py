"""Layer normalisation of tokens whose channels lie side by side: one token after another, its channels in vectors.

    for token:
        mean = sum(X[token]) / C
        variance = sum((X[token] - mean) ** 2) / C
        Y[token] = (X[token] - mean) / sqrt(variance + eps) * GAMMA + BETA

A token is read three times, twice of that from the first cache. The mean goes first: the mean of squares less the
square of the mean would lose the variance of tokens far from zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from fxprune.codegen.script import Script
from fxprune.codegen.workload import Layout

_VECTORS = 4
"""Vectors that are summed side by side at most: an addition takes as many cycles."""


@dataclass(frozen=True)
class NormWorkload:
    """One layer normalisation as a kernel sees it.

    Attributes:
        channels: C, those of them that are no padding.
        x: Layout of the input: tokens along the width, channels-last.
        y: Layout of the output.
        eps: Added to the variance.
        lanes: float32 lanes of a vector.
        threads: Threads the kernel splits the tokens over.
    """

    channels: int
    x: Layout
    y: Layout
    eps: float
    lanes: int
    threads: int


def build_norm_kernel(name: str, work: NormWorkload) -> str:
    """Return the TVMScript of a layer normalisation; its arguments are flat: X, GAMMA [C], BETA [C] and Y.

    Args:
        name: Global symbol.
        work: The operator.
    """
    script = Script()
    lanes = fit_lanes(work.channels, work.lanes)
    vectors = max(count for count in (1, 2, _VECTORS) if work.channels // lanes % count == 0)
    tokens = work.x.spatial[-1]
    weights = (work.channels, "float32")
    buffers = {"X": (work.x.numel, "float32"), "GAMMA": weights, "BETA": weights, "Y": (work.y.numel, "float32")}
    with script.function(name, buffers), script.block(f"for t in T.parallel({work.threads})"):
        first, last = (f"{tokens} * {end} // {work.threads}" for end in ("t", "(t + 1)"))
        with script.block(f"for u in T.serial({first}, {last})"):
            _write_token(script, work, lanes, vectors)
    return script.text


def fit_lanes(channels: int, lanes: int) -> int:
    """Return the lanes of the widest vectors that make up all channels."""
    return gcd(channels, lanes)


def _write_token(script: Script, work: NormWorkload, lanes: int, vectors: int) -> None:
    part = lanes * vectors
    over_channels = (
        f"for b in T.serial({work.channels // part})",
        f"for k in T.unroll({vectors})",
        f"for v in T.vectorized({lanes})",
    )
    channel = f"b * {part} + k * {lanes} + v"
    x, y = (
        f"{name}[u * {pitch} + {channel}]" for name, pitch in (("X", work.x.strides[-1]), ("Y", work.y.strides[-1]))
    )
    script.allocate("acc", part)
    script.allocate("mean", 1)
    script.allocate("scale", 1)
    for result, term in (("mean", x), ("scale", f"({x} - mean[0]) * ({x} - mean[0])")):
        with script.loops(*over_channels[1:]):
            script.add(f"acc[k * {lanes} + v] = T.float32(0)")
        with script.loops(*over_channels):
            script.add(f"acc[k * {lanes} + v] = acc[k * {lanes} + v] + {term}")
        _add_up(script, part)
        script.add(f"{result}[0] = acc[0] * T.float32({1 / work.channels!r})")
    script.add(f"scale[0] = T.float32(1) / T.sqrt(scale[0] + T.float32({work.eps!r}))")
    with script.loops(*over_channels):
        script.add(f"{y} = ({x} - mean[0]) * scale[0] * GAMMA[{channel}] + BETA[{channel}]")


def _add_up(script: Script, cells: int) -> None:
    """Add all cells of `acc` into the first one, halves to halves: a power of two of them."""
    while cells > 1:
        cells //= 2
        with script.block(f"for v in T.vectorized({cells})" if cells > 1 else "for v in T.serial(1)"):
            script.add(f"acc[v] = acc[v] + acc[v + {cells}]")
