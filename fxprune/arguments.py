"""The arguments of `compile` besides model, masks and target: checked before any work."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

import torch

from fxprune.errors import UnsupportedError

STRUCTURES = ("exact", "refill", "refill+", "regroup")
"""What `structure` may be: the mask as it is; whole rows; a fifth of the other rows in addition; row groups."""

Precision = Literal["ieee", "tf32"]
PRECISIONS: tuple[Precision, ...] = ("ieee", "tf32")
"""What `options["precision"]` may be, in torch's words: strict float32, or float32 as TF32 on tensor cores."""

LEVELS = ("off", "default", "max")
"""What `tune` may be, besides a number of seconds."""


@dataclass(frozen=True)
class Options:
    """The `options` of `compile`.

    Attributes:
        measure: Choose kernels by timing them on this machine; False trusts the cost model.
        threads: Threads of the kernels; None = as many as torch uses.
        precision: What layers of float32 are computed with on a GPU, "ieee" or "tf32".
    """

    measure: bool = True
    threads: int | None = None
    precision: Precision = "ieee"


@dataclass(frozen=True)
class Effort:
    """How long `compile` searches for faster kernels.

    Attributes:
        level: "off": what the records hold, and else the usual candidates, timed anew each time. "default": the usual
            candidates, timed once and recorded. "max": all candidates, recorded.
        seconds: How long "max" may take; None = as long as it needs.
    """

    level: str = "off"
    seconds: float | None = None


def read_tune(tune: str | float | None, options: Options) -> Effort:
    """Read the `tune` argument.

    Raises:
        UnsupportedError: It is neither a level nor a number of seconds, or nothing may be measured.
    """
    if tune is None or tune == "off":
        return Effort()
    level = isinstance(tune, str) and tune in LEVELS
    seconds = isinstance(tune, (int, float)) and not isinstance(tune, bool) and 0 < tune < float("inf")
    if not level and not seconds:
        raise UnsupportedError(
            f"tune={tune!r} is not known; pass one of {', '.join(map(repr, LEVELS))}, or a number of seconds above 0."
        )
    if not options.measure:
        raise UnsupportedError(f"tune={tune!r} measures, and options['measure'] is False. Leave one of them out.")
    return Effort("max", float(tune)) if seconds else Effort(str(tune))


def check_arguments(structure: str, dtype: torch.dtype | None) -> None:
    """Refuse values that this version does not support.

    Raises:
        UnsupportedError: Names the argument, the value and what is supported.
    """
    if structure not in STRUCTURES:
        raise UnsupportedError(f"structure={structure!r} is not known; pass one of {', '.join(map(repr, STRUCTURES))}.")
    if dtype not in (None, torch.float32):
        raise UnsupportedError(f"dtype={dtype} is not supported by this version; it computes in torch.float32.")


def read_options(options: Mapping[str, object] | None) -> Options:
    """Read the `options` mapping.

    Raises:
        UnsupportedError: It is no mapping, or a key or a value is not known.
    """
    if options is None:
        return Options()
    if not isinstance(options, Mapping):
        raise UnsupportedError(
            f"options is a {type(options).__name__}; it needs to be a mapping such as {{'threads': 2}}."
        )
    known = [field.name for field in fields(Options)]
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It knows {', '.join(known)}."
            raise UnsupportedError(f"options has no {key!r}. {hint}")
    measure, threads = options.get("measure", True), options.get("threads")
    if not isinstance(measure, bool):
        raise UnsupportedError(f"options['measure'] is {measure!r}; it needs True or False.")
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise UnsupportedError(f"options['threads'] is {threads!r}; it needs a whole number from 1 up.")
    wanted = options.get("precision", "ieee")
    precision = next((one for one in PRECISIONS if one == wanted), None)
    if precision is None:
        needed = " or ".join(map(repr, PRECISIONS))
        raise UnsupportedError(f"options['precision'] is {wanted!r}; it needs {needed}.")
    return Options(measure, threads, precision)


def read_example_inputs(example_inputs: torch.Tensor | tuple[object, ...] | None) -> tuple[object, ...] | None:
    """Return the example inputs as a tuple of positional arguments.

    Raises:
        UnsupportedError: They are neither a tensor nor a tuple.
    """
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,)
    if example_inputs is None or isinstance(example_inputs, tuple):
        return example_inputs
    raise UnsupportedError(
        f"example_inputs is a {type(example_inputs).__name__}; it needs to be a tensor or a tuple of the model's "
        "positional inputs."
    )
