"""The options that several commands share, each in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Argument(help="module:function that returns the model, or a .pt2 file of torch.export.save.")
]
Weights = Annotated[Path | None, typer.Option(help="Safetensors file with the model's state dict.")]
Masks = Annotated[
    Path | None, typer.Option(help="File or folder with the masks; without it a zero weight is a pruned weight.")
]
Inputs = Annotated[
    list[str], typer.Option("--input", help="Sizes of one input, e.g. 1,3,224,224 or 1,128:int64; once for each.")
]
Target = Annotated[str, typer.Option(help="cpu, torch, cuda, or a TVM target as JSON.")]
Structure = Annotated[str, typer.Option(help="exact, refill, refill+ or regroup.")]
Database = Annotated[Path | None, typer.Option(help="File of the measured times; else in the user's cache.")]
Threads = Annotated[int | None, typer.Option(help="Threads of the kernels; else as many as torch uses.")]
Precision = Annotated[str, typer.Option(help="GPUs: ieee (strict float32), or tf32 on tensor cores.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else.")]
Saved = Annotated[Path, typer.Argument(help="A file that fxprune compile or compiled.save wrote.")]
