"""The command line: `prepare` compiles everything on any machine, `run` measures on a machine with a GPU.

Both take the same choice of layers and models. What `prepare` compiled lies in the folder that FXPRUNE_CACHE_DIR names,
build/gpu if it names none; with that folder `run` needs neither TVM's compiler nor nvcc.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

import fxprune
from benchmarks.gpu.layers import TYPES, LayerCase, draw_cases
from benchmarks.gpu.measure import SHORT, ModelCase, Row, layer_scripts, measure_layer, measure_model
from benchmarks.models import CIFAR_SIZE, IMAGE_SIZE
from fxprune.codegen.cuda.cache import CACHE_VARIABLE, open_library
from fxprune.codegen.cuda.device import find_gpu
from fxprune.codegen.cuda.target import ARCHITECTURES, CudaTarget, find_arch, read_cuda_target
from fxprune.errors import UnsupportedError

_SPARSITIES = (0.58, 0.74, 0.8, 0.9)
_KINDS = ("float32", "tf32", "bfloat16")
_MODELS = ("resnet18", "resnet50", "vgg16_bn")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    chosen = _parse(arguments)
    os.environ.setdefault(CACHE_VARIABLE, str(Path("build") / "gpu"))
    if chosen.command == "prepare":
        _prepare(chosen, read_cuda_target({"kind": "cuda", "arch": chosen.arch}))
        return 0
    try:
        device = find_gpu()
        target = read_cuda_target({"kind": "cuda", "arch": find_arch(torch.cuda.get_device_capability(device))})
    except UnsupportedError as error:
        print(f"skipped: {error} Run it on a machine with a GPU.")
        return 0
    torch.backends.cudnn.benchmark = True
    rows: list[Row] = []
    for row in _measure(chosen, target, device):
        print(_format(row), flush=True)
        rows.append(row)
        _write(rows, chosen.output, device)  # a machine that is lent may be taken back at any time
    print(f"written to {chosen.output}")
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("command", choices=("prepare", "run"))
    parser.add_argument(
        "--arch", choices=ARCHITECTURES, default="sm_90a", help="architecture that prepare compiles for"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--sparsities", type=float, nargs="+", default=_SPARSITIES)
    parser.add_argument("--rows", type=int, nargs="+", default=(32, 64), help="heights of row groups")
    parser.add_argument("--types", choices=TYPES, nargs="+", default=_KINDS, help="what is computed with")
    parser.add_argument("--models", nargs="*", default=_MODELS)
    sizes = (IMAGE_SIZE, CIFAR_SIZE)
    parser.add_argument("--images", type=int, choices=sizes, nargs="+", default=sizes, help="heights of the images")
    parser.add_argument("--layers", type=int, default=99, help="how many layer shapes; 0 = none")
    parser.add_argument("--tiles", type=int, default=4, help="kernels of each layer that are timed")
    parser.add_argument("--output", type=Path, default=Path("build") / "gpu" / "result.json")
    return parser.parse_args(arguments)


def _prepare(chosen: argparse.Namespace, target: CudaTarget) -> None:
    for layer in _cases(chosen):
        library = open_library(layer_scripts(layer, target, chosen.tiles), target.arch)
        worst = max((f.resources.registers for f in library.functions.values()), default=0)
        print(f"{layer.label}: {len(library.functions)} kernels, at most {worst} registers", flush=True)
    for case in _models(chosen):
        model, masks, x = case.draw()
        where = {"kind": "cuda", "arch": target.arch}
        report = fxprune.compile(model, masks, where, example_inputs=x, options=case.options).report
        print(f"{case.label}: {report.compile_seconds:.0f} s; {report.whole_model}", flush=True)


def _measure(chosen: argparse.Namespace, target: CudaTarget, device: torch.device) -> Iterator[Row]:
    for layer in _cases(chosen):
        yield measure_layer(layer, target, device, chosen.tiles)
    for case in _models(chosen):
        yield measure_model(case, target, device)


def _cases(chosen: argparse.Namespace) -> list[LayerCase]:
    """Return the layers that were asked for, all sparsities and heights of the first shapes."""
    sparsities, heights = tuple(chosen.sparsities), tuple(chosen.rows)
    each = chosen.layers * len(sparsities) * len(heights)
    drawn = [draw_cases(chosen.batch, sparsities, heights, kind) for kind in chosen.types]
    return [case for cases in drawn for case in itertools.islice(cases, each)]


def _models(chosen: argparse.Namespace) -> list[ModelCase]:
    options = itertools.product(chosen.images, chosen.types, chosen.models, chosen.sparsities, chosen.rows)
    return [ModelCase(name, chosen.batch, sparsity, rows, kind, image) for image, kind, name, sparsity, rows in options]


def _format(row: Row) -> str:
    """Return one line: the fastest engine first, the speed-up over the fastest dense one of the same type."""
    times = sorted(row.times_us.items(), key=lambda item: item[1])
    ours = min(time for name, time in times if not _is_peer(name))
    kind = SHORT[row.kind]
    dense = min(time for name, time in times if _is_peer(name) and name.endswith(kind))
    listed = ", ".join(f"{name} {time:.1f} us" for name, time in times)
    facts = ", ".join(f"{name} {value:.3g}" for name, value in row.facts.items())
    note = f"; {row.note}" if row.note else ""
    return f"{row.label}: {dense / ours:.2f}x of dense {kind}; {listed}; {facts}{note}"


def _is_peer(engine: str) -> bool:
    return engine.startswith(("dense", "eager", "torch.compile"))


def _write(rows: list[Row], path: Path, device: torch.device) -> None:
    facts = {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "fxprune": importlib.metadata.version("fxprune"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
