"""The process that runs the cells of one model: keys in as JSON lines on stdin, outcomes out on stdout."""

from __future__ import annotations

import json
import sys
import time
import warnings

import torch

from benchmarks.zoo.bench import Bench
from benchmarks.zoo.cell import Key, as_json, run_cell


def main() -> None:
    """Run one cell a line; results go to the stream that stdout was at the start, prints of others to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(sys.argv[1]))
    bench = Bench()
    for line in sys.stdin:
        fields = json.loads(line)
        key = Key(fields["model"], fields["kind"], tuple(fields["shape"]), fields["batch"])
        start = time.perf_counter()
        found = as_json(key, run_cell(key, bench))
        print(json.dumps({**found, "wall_seconds": round(time.perf_counter() - start, 1)}), file=answers, flush=True)


if __name__ == "__main__":
    main()
