"""`compile`: the whole compiler on one screen."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from fxprune.arguments import check_arguments, read_example_inputs, read_options, read_tune
from fxprune.compiled import CompiledModule, Specialisation, check_not_compiled
from fxprune.debug import configure_logging, dump_text
from fxprune.frozen.artifact import Source
from fxprune.frozen.inputs import InputForm
from fxprune.graph import check_ready
from fxprune.host import on_host
from fxprune.masks import PackedMasks, kept_weight_shares, open_masks
from fxprune.originals import count_from_originals
from fxprune.passes import default_pipeline
from fxprune.prepare import Prepared, prepare
from fxprune.records.place import find_database
from fxprune.report import MaskFacts
from fxprune.targets import open_backend
from fxprune.transform.change import describe_structure
from fxprune.transform.layers import find_families, find_scores


def compile(  # noqa: A001  # the public name; torch.compile has it too
    model: nn.Module | ExportedProgram | fx.GraphModule,
    masks: Mapping[str, object] | str | os.PathLike[str] | None = None,
    target: str | Mapping[str, object] = "cpu",
    *,
    example_inputs: torch.Tensor | tuple[object, ...] | None = None,
    structure: str = "exact",
    dtype: torch.dtype | None = None,
    tune: str | float | None = None,
    database: str | os.PathLike[str] | None = None,
    options: Mapping[str, object] | None = None,
) -> CompiledModule:
    """Compile a pruned model into a module that computes the same in a fraction of the time.

    Args:
        model: A module in eval mode, an exported program, or a graph module; it is not changed.
        masks: Which weights survive pruning: parameter name to a tensor of 0 and 1 in the weight's shape, 1 = kept; or
            the path of a file that `load_masks` reads.
            None: the masks of `torch.nn.utils.prune` on the model; elsewhere a zero weight is a pruned weight.
        target: "cpu", or a TVM target of kind llvm as a dict or JSON text; "cuda": the GPU of this machine, or, to be
            compiled on any machine, {"kind": "cuda", "arch": "sm_90a"}; "torch": no kernels, the dense graph without
            its dead channels, whose `.graph_module` can be exported.
        example_inputs: A tensor or a tuple of the model's positional inputs. None: compiled at the first call.
        structure: "exact": the result equals the masked model. "refill", "refill+", "regroup": the masks become whole
            rows or row groups first, which changes what the model computes; `.masks` are the masks to retrain with.
        dtype: torch.float32 or None. A model is computed in its own type; kernels take float32, on GPUs bfloat16 and
            float16, too.
        tune: None or "off": kernels are chosen by their records in the database; layers without records by timing a few
            candidates, which is forgotten. "default": those times are recorded, and a second compilation starts no
            measurement. "max", or a number of seconds: all candidates first, as `fxprune.tune` does.
        database: The file of the records. None: `records.jsonl` in the folder FXPRUNE_CACHE_DIR or the user's cache.
        options: "measure" (bool, default True: choose kernels by timing them), "threads" (int, default torch's),
            "precision" (GPUs: "ieee", the default, computes layers of float32 in strict float32; "tf32" may use tensor
            cores in TF32, which keep 10 bits of a fraction).

    Returns:
        The compiled model. `.report` says for every layer what was done and why.

    Raises:
        MaskError: A mask does not fit the model.
        UnsupportedError: The model, the target, an input or an option is not supported.
        CodegenError: A kernel could not be built.
    """
    configure_logging()
    check_arguments(structure, dtype)
    chosen = read_options(options)
    effort = read_tune(tune, chosen)
    inputs = read_example_inputs(example_inputs)
    check_not_compiled(model)
    backend = open_backend(target, chosen, effort, find_database(database))
    if backend.elsewhere:
        model, masks, inputs = on_host(model), on_host(masks), on_host(inputs)
    kept = PackedMasks(open_masks(model, masks))
    check_ready(model)
    pipeline = default_pipeline(backend.efficiency, structure, backend.narrow)
    scores = None if structure == "exact" else find_scores(model, kept)

    def ready_for(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Prepared:
        return prepare(model, kept, scores, pipeline, args, kwargs)

    def compile_for(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Specialisation:
        start = time.perf_counter()
        if backend.elsewhere:
            args, kwargs = on_host(args), on_host(kwargs)
        ready = ready_for(args, kwargs)
        facts = MaskFacts(
            kept_weight_shares(model, ready.masks),
            find_families(model, ready.masks),
            describe_structure(structure, model, kept, ready.masks),
        )
        compiled.set_masks(ready.masks)
        made = backend.build(ready.captured, tree_leaves((args, dict(kwargs))), ready.records, facts, start)
        layers, dense_layers = (
            count_from_originals(layers, ready.originals, facts.kept_weight)
            for layers in (made.report.layers, made.dense_layers)
        )
        report = replace(made.report, layers=layers)
        dump_text("report.txt", str(report))
        form = InputForm.of(args, kwargs)
        source = Source(
            lambda form: ready_for(*form.arguments()).captured, form, facts, ready.originals, ready.captured
        )
        return replace(made, report=report, source=source, dense_layers=dense_layers)

    compiled = CompiledModule(compile_for, kept if structure == "exact" else None, any_device=backend.elsewhere)
    if inputs is not None:
        compiled.specialise(inputs, {})
    return compiled
