"""Time and peak memory of channel elimination alone on three large networks."""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import torch

from benchmarks.zoo.kinds import draw_masks
from benchmarks.zoo.models import build_problem
from fxprune.graph import annotate, capture
from fxprune.passes import EliminateChannels, FoldBatchNorm, run_passes

LIMITS = {"resnet152": 10.0, "swin_v2_b": 30.0, "maxvit_t": 30.0}
"""Model to the seconds that the pass may take on two cores."""

MEMORY_LIMIT = 1 << 30
"""Bytes that the pass may take beyond the model."""

_SIZE = 224
_KIND = "filters50"


def measure_speed(threads: int) -> int:
    """Measure each network in a process of its own, one line each; returns how many are over a limit or died."""
    bad = 0
    for name in LIMITS:
        code = subprocess.run(
            [sys.executable, "-m", "benchmarks.zoo.speed", name, str(threads)], check=False
        ).returncode
        bad += code != 0
        if code < 0:
            print(f"{name}: the process died of signal {-code}", flush=True)
    return bad


def measure(name: str) -> bool:
    """Run the pass once in float32 on images of 224 pixels and print time and memory; returns whether both are good."""
    problem = build_problem(name, (3, _SIZE, _SIZE), 1)
    masks = draw_masks(_KIND, problem)
    model = problem.model.float()
    gm = capture(model, tuple(x.float() for x in problem.inputs), {}, masks).graph_module
    annotate(gm, masks)
    run_passes(gm, (FoldBatchNorm(),))
    before, start = _peak_bytes(), time.perf_counter()
    (record,) = run_passes(gm, (EliminateChannels(),))
    seconds, extra = time.perf_counter() - start, _peak_bytes() - before
    good = seconds <= LIMITS[name] and extra <= MEMORY_LIMIT
    print(
        f"{name}: pass {record.seconds:.1f} s, with checks {seconds:.1f} s (limit {LIMITS[name]:.0f} s), peak memory "
        f"+{extra / 1e6:.0f} MB (limit {MEMORY_LIMIT / 1e6:.0f} MB), macs {record.macs_before / 1e9:.2f}G -> "
        f"{record.macs_after / 1e9:.2f}G, {'within' if good else 'OVER'} the limits",
        flush=True,
    )
    return good


def _peak_bytes() -> int:
    """Return the largest resident size of this process so far, in bytes; Linux counts kibibytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    sys.exit(not measure(sys.argv[1]))
