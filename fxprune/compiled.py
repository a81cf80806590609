"""The result of `compile`: a module that runs the compiled model and says what was done to it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import NoReturn, Protocol, SupportsIndex

import torch
from torch import fx, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from fxprune.errors import FxpruneError, UnsupportedError
from fxprune.frozen.artifact import Binary, Part, Source, write_artifact
from fxprune.frozen.inputs import InputForm
from fxprune.masks import PackedMasks
from fxprune.report import CompileReport, LayerReport, Verdict

logger = logging.getLogger(__name__)

_Key = tuple[object, ...]

_PLAIN = (int, float, complex, str, NoneType, torch.dtype, torch.device, torch.layout, torch.memory_format)
"""Types of inputs besides tensors; a compiled program holds for their values."""


class Program(Protocol):
    """What runs: kernels and torch, or torch alone."""

    @property
    def graph_module(self) -> fx.GraphModule:
        """The graph that runs."""

    @property
    def library(self) -> Binary | None:
        """The kernels, if there are any."""

    @property
    def recipe(self) -> Mapping[str, object]:
        """What the captured graph is lowered with, as JSON."""

    def run(self, inputs: Sequence[object]) -> list[object]:
        """Run on flat inputs of the captured shapes; the results are the caller's."""


@dataclass(frozen=True, eq=False)
class Specialisation:
    """A model compiled for one set of input shapes.

    Attributes:
        program: What runs.
        out_spec: How its flat results become what the model returns.
        report: What was done.
        source: The captured graph, to be written to a file; None if it was read from one.
        verdict: Returns what the first run found; None: it found nothing, or there was none.
        dense_layers: The layers of the report in case that was dense torch.
    """

    program: Program
    out_spec: TreeSpec
    report: CompileReport
    source: Source | None = None
    verdict: Callable[[], Verdict | None] = lambda: None
    dense_layers: tuple[LayerReport, ...] = ()

    def report_now(self) -> CompileReport:
        """Return the report with what the first run found."""
        found = self.verdict()
        if found is None:
            return self.report
        return replace(
            self.report, whole_model=found.text, layers=self.report.layers if found.sparse else self.dense_layers
        )


_NOT_YET = (
    "Nothing was compiled yet: without example_inputs a model is compiled at its first call. "
    "Call it once, or pass example_inputs to compile."
)

Compile = Callable[[tuple[object, ...], Mapping[str, object]], Specialisation]
"""Compiles the model for the shapes of (args, kwargs)."""


class CompiledModule(nn.Module):
    """A compiled model: call it like the model it was made from, in eval mode and without gradients.

    Inputs of other shapes are compiled at their first call, once, and kept. Calls from several threads are safe; they
    take turns.
    """

    def __init__(
        self, compile_for: Compile, masks: Mapping[str, torch.Tensor] | None, *, any_device: bool = False
    ) -> None:
        """Make an empty result; `specialise` fills it.

        Args:
            compile_for: Compiles the model for given inputs.
            masks: Final masks by parameter name; None if compiling changes them and calls `set_masks`.
            any_device: Whether a program that was compiled for inputs on one device is called with inputs on another.
        """
        super().__init__()
        self.training = False
        self._compile_for = compile_for
        self._any_device = any_device
        self._masks = None if masks is None else PackedMasks(masks)
        self._known: dict[_Key, Specialisation] = {}
        self._latest: Specialisation | None = None
        self._compiling = threading.Lock()

    def forward(self, *args: object, **kwargs: object) -> object:
        """Run the model.

        Args:
            *args: The model's positional arguments.
            **kwargs: Its keyword arguments.

        Returns:
            What the model returns, in memory of its own.

        Raises:
            UnsupportedError: An input asks for gradients, or the model cannot be compiled for these inputs.
        """
        flat, spec = _flatten(args, kwargs)
        _check_no_gradients(flat)
        found = self._known.get(_key(flat, spec, self._any_device)) or self.specialise(args, kwargs)
        if torch.is_inference_mode_enabled() or torch.is_autocast_enabled("cpu"):
            with _plain_modes():
                return tree_unflatten(found.program.run(flat), found.out_spec)
        return tree_unflatten(found.program.run(flat), found.out_spec)

    def specialise(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Specialisation:
        """Return the model compiled for the shapes of these arguments, compiled now if it was not before.

        Args:
            args: Positional arguments of the model.
            kwargs: Keyword arguments.
        """
        flat, spec = _flatten(args, kwargs)
        key = _key(flat, spec, self._any_device)
        with self._compiling:
            if key not in self._known:
                if self._known:
                    logger.info("new input shapes %s: compiling again", _shapes(flat))
                with _plain_modes():
                    self._known[key] = self._compile_for(args, kwargs)
                self._latest = self._known[key]
            return self._known[key]

    def adopt(self, form: InputForm, made: Specialisation) -> None:
        """Keep what was made elsewhere for inputs of a form.

        Args:
            form: The inputs.
            made: What runs for them.
        """
        self._known[_key(*_flatten(*form.arguments()), self._any_device)] = self._latest = made

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, for all input shapes compiled so far, to one file that `fxprune.load` reads.

        The path holds either what it held before or the whole new file, whenever this process ends. There is no pickle
        in the file; the kernels in it are machine code for this kind of processor.

        Args:
            path: Where to; a file there is replaced.

        Raises:
            FxpruneError: Nothing was compiled yet.
            UnsupportedError: The model was loaded from a file, was changed after it was compiled, or holds an operator
                or an argument for which the file has no form.
            ArtifactError: The file cannot be written.
        """
        self._last()
        with self._compiling:
            parts = [
                Part(made.source, made.out_spec, made.report, made.program.recipe, made.program.library)
                for made in self._known.values()
            ]
        write_artifact(Path(path), parts, self.masks)

    def train(self, mode: bool = True) -> CompiledModule:
        """Refuse training mode.

        Raises:
            UnsupportedError: `mode` is True.
        """
        if mode:
            raise UnsupportedError(
                "A compiled model is for inference: it has no parameters to train. Train the model it was made from, "
                "with its masks held, and compile again."
            )
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse copies and pickles: the machine code lives in this process.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(
            "A compiled model cannot be copied or pickled: its kernels are loaded in this process. Write it with "
            "compiled.save(path) and read it with fxprune.load(path)."
        )

    @property
    def report(self) -> CompileReport:
        """What was done to every layer, for the input shapes compiled last.

        Raises:
            FxpruneError: Nothing was compiled yet.
        """
        return self._last().report_now()

    @property
    def graph_module(self) -> fx.GraphModule:
        """The lowered graph, for the input shapes compiled last; for micro-batches, that of one of them.

        Raises:
            FxpruneError: Nothing was compiled yet.
        """
        return self._last().program.graph_module

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """The final masks: bool, True = kept, by parameter name.

        Raises:
            FxpruneError: Compiling changes the masks, and nothing was compiled yet.
        """
        if self._masks is None:
            raise FxpruneError(_NOT_YET)
        return dict(self._masks)

    def set_masks(self, masks: Mapping[str, torch.Tensor]) -> None:
        """Set the final masks, once compiling has changed them.

        Args:
            masks: Bool masks by parameter name.
        """
        self._masks = PackedMasks(masks)

    def _last(self) -> Specialisation:
        if self._latest is None:
            raise FxpruneError(_NOT_YET)
        return self._latest


def check_not_compiled(model: object) -> None:
    """Refuse to compile what `compile` returned.

    Raises:
        UnsupportedError: The model is compiled already.
    """
    if isinstance(model, CompiledModule):
        raise UnsupportedError("model is compiled already (a CompiledModule); pass the model that it was made from.")


@contextlib.contextmanager
def _plain_modes() -> Iterator[None]:
    """Leave inference mode, whose tensors cannot be written to outside it, and autocast, which changes types."""
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
        yield


def _check_no_gradients(flat: list[object]) -> None:
    if not torch.is_grad_enabled():
        return
    for index, value in enumerate(flat):
        if isinstance(value, torch.Tensor) and value.requires_grad:
            raise UnsupportedError(
                f"Input {index} requires gradients; a compiled model is for inference only. Call it under "
                "torch.no_grad(), or pass the tensor's .detach()."
            )


def _flatten(args: tuple[object, ...], kwargs: Mapping[str, object]) -> tuple[list[object], TreeSpec | None]:
    """Return the flat inputs and how they are put together; None: they are positional tensors.

    Most models are called so, and then nothing is taken apart: right after a large model Python finds nothing in the
    caches, and what it does for a call takes several times as long as when it is timed alone.
    """
    if not kwargs and all(isinstance(value, torch.Tensor) for value in args):
        return list(args), None
    return tree_flatten((args, dict(kwargs)))


def _key(flat: list[object], spec: TreeSpec | None, any_device: bool) -> _Key:
    """Return what a compiled program depends on: structure, shapes and types of tensors, values of everything else."""
    parts = [
        (tuple(value.shape), value.dtype, None if any_device else value.device, value.layout)
        if isinstance(value, torch.Tensor)
        else _plain_key(index, value)
        for index, value in enumerate(flat)
    ]
    return (spec, *parts)


def _plain_key(index: int, value: object) -> _Key:
    if not isinstance(value, _PLAIN):
        hint = "Pass torch.from_numpy(x)." if type(value).__module__ == "numpy" else "Pass a tensor."
        raise UnsupportedError(
            f"Input {index} is a {type(value).__name__}; inputs are tensors, numbers, strings or None, also inside "
            f"tuples, lists and dicts. {hint}"
        )
    return type(value), value


def _shapes(flat: list[object]) -> str:
    return ", ".join(str(list(value.shape)) for value in flat if isinstance(value, torch.Tensor))
