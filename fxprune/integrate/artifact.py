"""`load`: a compiled model from the file that `CompiledModule.save` wrote. `fxprune.frozen.artifact` has its form."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors

from fxprune.codegen.memory import release_unused
from fxprune.compiled import CompiledModule, Specialisation
from fxprune.errors import ArtifactError, UnsupportedError
from fxprune.frozen.artifact import FORMAT, GRAPH, SCHEMA, TENSORS, installed_versions, kernels_name
from fxprune.frozen.container import Container
from fxprune.frozen.graph import read_graph
from fxprune.frozen.inputs import InputForm, read_inputs, read_spec
from fxprune.frozen.report import read_facts, read_originals, read_report
from fxprune.frozen.tensors import read_mask
from fxprune.graph import Captured
from fxprune.integrate.gpu import is_for_gpu, open_specialisation
from fxprune.integrate.native import NATIVE, Stored, rebuild, run_dense, trust
from fxprune.report import CompileReport

_MALFORMED = (
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    RuntimeError,
    SafetensorError,
)
"""What reading raises on JSON and tensors that do not fit together."""


def load(path: str | os.PathLike[str], *, native: str = "trust") -> CompiledModule:
    """Read a compiled model; nothing is unpickled, and TVM is not loaded.

    Args:
        path: A file that `CompiledModule.save` wrote.
        native: "trust": run the machine code in the file, as one runs a program: only from where you would take one.
            "rebuild": compile the kernels again from the stored graph, for this machine; needs TVM and a C++ compiler.
            "dense": run the stored graph on torch, without kernels.

    Returns:
        The model, for the input shapes it was compiled for; with "trust" its results are those of the saved model, bit
        by bit. Other shapes are refused: the file holds graphs of fixed shapes.

    Raises:
        ArtifactError: The file is missing, damaged, or of another form; or, with "trust", it was made by other versions
            of fxprune, torch or TVM, or for a processor that this machine does not have.
        UnsupportedError: `native` is not known.
    """
    if native not in NATIVE:
        raise UnsupportedError(f"native={native!r} is not known; pass one of {', '.join(map(repr, NATIVE))}.")
    container = Container(Path(path))
    _check_form(container)
    if native == "trust":
        _check_versions(container)
    with _named(container):
        stored = json.loads(container.read(GRAPH))
        tensors = read_tensors(container.read(TENSORS))
        masks = {str(name): read_mask(form, tensors) for name, form in stored["masks"].items()}
        elsewhere = any(is_for_gpu(part["recipe"]) for part in stored["parts"])
    compiled = CompiledModule(_refuse_shapes(container.path), masks, any_device=elsewhere)
    for number, part in enumerate(stored["parts"]):
        form, made = _read_part(container, number, part, tensors, native)
        compiled.adopt(form, made)
    del container, tensors
    release_unused()
    return compiled


def read_reports(path: str | os.PathLike[str]) -> tuple[tuple[InputForm, CompileReport], ...]:
    """Return the inputs and the report of every set of input shapes in a file; no kernel is loaded.

    Args:
        path: A file that `CompiledModule.save` wrote.

    Raises:
        ArtifactError: The file is missing, damaged, or of another form.
    """
    container = Container(Path(path))
    _check_form(container)
    with _named(container):
        parts = json.loads(container.read(GRAPH))["parts"]
        return tuple((read_inputs(part["inputs"]), read_report(part["report"])) for part in parts)


def _check_form(container: Container) -> None:
    found = container.manifest.get("format"), container.manifest.get("schema")
    if found != (FORMAT, SCHEMA):
        raise ArtifactError(
            f"'{container.path}' is a {found[0]!r} of form {found[1]!r}; this version reads {FORMAT!r} of form "
            f"{SCHEMA}. Load it with the version of fxprune that saved it, or compile and save the model again."
        )


def _check_versions(container: Container) -> None:
    versions = container.manifest.get("versions")
    then = dict(versions) if isinstance(versions, Mapping) else {}
    now = installed_versions()
    other = [f"{name} {then.get(name)}, here {now[name]}" for name in now if then.get(name) != now[name]]
    if other:
        raise ArtifactError(
            f"'{container.path}' was saved with other versions: {'; '.join(other)}. Install those, pass "
            "native='rebuild' to compile its kernels again, or native='dense' to run it without kernels."
        )


@contextlib.contextmanager
def _named(container: Container) -> Iterator[None]:
    """Say of which file the parts do not fit together."""
    try:
        yield
    except _MALFORMED as error:
        raise ArtifactError(
            f"'{container.path}' is damaged: {type(error).__name__}: {error}. Copy it again, or save the model again."
        ) from error


def _refuse_shapes(path: Path) -> Any:
    def refuse(args: tuple[object, ...], kwargs: Mapping[str, object]) -> NoReturn:
        form = InputForm.of(args, kwargs)
        shapes = ", ".join(str(list(value.shape)) for value in form.flat() if isinstance(value, torch.Tensor))
        raise UnsupportedError(
            f"The model from '{path}' was not compiled for these inputs (shapes {shapes}), and a file holds graphs of "
            "fixed shapes. Call the compiled model with them once before it is saved."
        )

    return refuse


def _read_part(
    container: Container, number: int, part: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], native: str
) -> tuple[InputForm, Specialisation]:
    """Return one specialisation and its inputs."""
    machine = str(container.manifest.get("machine"))
    with _named(container):
        form = read_inputs(part["inputs"])
        gm = read_graph(part["graph"], tensors, form.flat())
        report, facts, recipe = read_report(part["report"]), read_facts(part["facts"]), part["recipe"]
        stored = Stored(container.path, gm, form, recipe, facts, read_originals(part["originals"]), report, machine)
        out_spec = read_spec(part["outputs"])
    if not recipe:
        from fxprune import shrunk

        dense = shrunk.DenseProgram(Captured(gm, form.spec, out_spec))
        return form, Specialisation(dense, out_spec, report)
    binary = container.read(kernels_name(number)) if recipe["functions"] and native == "trust" else b""
    if is_for_gpu(recipe):
        with _named(container):
            return form, open_specialisation(stored, out_spec, binary, native)
    if native == "trust":
        kernels, report = trust(stored, binary)
    else:
        kernels, report = rebuild(stored) if native == "rebuild" else run_dense(stored)
    return form, Specialisation(kernels, out_spec, report)
