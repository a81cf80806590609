"""`tune`: search for faster kernels for a model and record what was found."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Executor

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from fxprune.arguments import check_arguments, read_example_inputs, read_options, read_tune
from fxprune.compiled import check_not_compiled
from fxprune.debug import configure_logging
from fxprune.errors import UnsupportedError
from fxprune.graph import check_ready
from fxprune.host import on_host
from fxprune.masks import open_masks
from fxprune.passes import default_pipeline
from fxprune.prepare import prepare
from fxprune.records.place import find_database
from fxprune.targets import open_search
from fxprune.transform.layers import find_scores
from fxprune.tuning.progress import Show, Standing, TerminalProgress


def tune(
    model: nn.Module | ExportedProgram | fx.GraphModule,
    masks: Mapping[str, object] | str | os.PathLike[str] | None = None,
    target: str | Mapping[str, object] = "cpu",
    *,
    example_inputs: torch.Tensor | tuple[object, ...] | None = None,
    structure: str = "exact",
    executor: Executor | None = None,
    database: str | os.PathLike[str] | None = None,
    seconds: float | None = None,
    only: str | None = None,
    progress: Show | None = None,
    options: Mapping[str, object] | None = None,
) -> Standing:
    """Measure the kernels that could run a model and record the times; `compile` chooses by the records.

    What has a record is not measured again, so a search that was stopped goes on where it was. Every candidate runs in
    a process of its own: one that crashes or hangs is recorded as one that cannot run. Ctrl-C loses the trials that
    are under way and no other.

    Args:
        model: As for `compile`.
        masks: As for `compile`.
        target: "cpu", or a TVM target of kind llvm that this machine can run; "cuda": the GPU of this machine; one of
            kind cuda, such as {"kind": "cuda", "arch": "sm_90a"}, with `only`.
        example_inputs: A tensor or a tuple of the model's positional inputs; kernels are for their shapes.
        structure: As for `compile`.
        executor: Runs the trials: any `concurrent.futures.Executor` whose workers are machines like this one. On one
            machine its workers build side by side and measure in turns. None: this process.
        database: The file of the records. None: `records.jsonl` in the folder FXPRUNE_CACHE_DIR or the user's cache.
        seconds: No trial begins later than this. None: all trials.
        only: For GPUs. "build": every kernel is compiled into the folder FXPRUNE_CACHE_DIR and none is measured; no GPU
            is needed. "measure": what was compiled so, with the same arguments, is measured; no compiler is needed.
        progress: Is told of every step. None: a line on the terminal, if standard error is one.
        options: "threads" (int, default torch's), "precision" (GPUs: "ieee" or "tf32").

    Returns:
        How far the search came.

    Raises:
        MaskError: A mask does not fit the model.
        UnsupportedError: The model, the target, an input or an option is not supported, or the database cannot be
            written.
        CodegenError: There is no C++ compiler, or no nvcc for a GPU; or no process can be started.
    """
    configure_logging()
    check_arguments(structure, None)
    chosen = read_options(options)
    effort = read_tune("max" if seconds is None else seconds, chosen)
    inputs = read_example_inputs(example_inputs)
    if inputs is None:
        raise UnsupportedError("tune needs example_inputs: kernels are for the shapes of one set of inputs.")
    check_not_compiled(model)
    search = open_search(target, chosen, find_database(database), executor=executor, seconds=effort.seconds, only=only)
    if search.elsewhere:
        model, masks, inputs = on_host(model), on_host(masks), on_host(inputs)
    kept = open_masks(model, masks)
    check_ready(model)
    scores = None if structure == "exact" else find_scores(model, kept)
    pipeline = default_pipeline(search.efficiency, structure, search.narrow)
    ready = prepare(model, kept, scores, pipeline, inputs, {})
    flat = tree_leaves((inputs, {}))
    if progress is not None:
        return search.run(ready.captured.graph_module, flat, progress)
    with TerminalProgress() as shown:
        return search.run(ready.captured.graph_module, flat, shown)
