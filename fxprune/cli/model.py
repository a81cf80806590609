"""Models and inputs from the words of a command line."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.export import ExportedProgram

from fxprune.errors import UnsupportedError

_TYPES = {"float32": torch.float32, "int64": torch.int64, "int32": torch.int32, "bool": torch.bool}
"""Types of inputs."""


def read_model(text: str, weights: Path | None) -> nn.Module | ExportedProgram:
    """Return a model in eval mode.

    Args:
        text: "module:function", which is called without arguments and returns the model; or a .pt2 file of
            `torch.export.save`.
        weights: A safetensors file with its state dict, or None.

    Raises:
        UnsupportedError: There is no such module, function or file, or the weights do not fit.
    """
    if text.endswith(".pt2"):
        return _read_program(text, weights)
    model = _call(text)
    if weights is not None:
        try:
            model.load_state_dict(load_file(weights))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UnsupportedError(f"The weights in '{weights}' do not fit {text}: {error}") from error
    return model.eval()


def _read_program(path: str, weights: Path | None) -> ExportedProgram:
    if weights is not None:
        raise UnsupportedError(f"'{path}' holds its own weights. Leave --weights out.")
    try:
        return torch.export.load(path)
    except (OSError, RuntimeError, ValueError) as error:
        raise UnsupportedError(f"'{path}' is not a file that torch.export.save wrote: {error}") from error


def _call(text: str) -> nn.Module:
    """Import a function and call it; modules are looked for in the working directory, too."""
    place, _, name = text.partition(":")
    if not place or not name:
        raise UnsupportedError(f"The model is {text!r}; write module:function, e.g. torchvision.models:resnet18.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(place), name)
    except (ImportError, AttributeError) as error:
        raise UnsupportedError(f"The model {text!r} cannot be imported: {error}. Check its spelling.") from error
    model = function if isinstance(function, nn.Module) else function()
    if not isinstance(model, nn.Module):
        raise UnsupportedError(f"{text} returned a {type(model).__name__}; it needs to return a torch.nn.Module.")
    return model


def read_inputs(texts: Sequence[str]) -> tuple[torch.Tensor, ...]:
    """Return example inputs.

    Args:
        texts: Sizes such as "1,3,224,224", of type float32, or with a type: "1,128:int64".

    Raises:
        UnsupportedError: A text is not of that form.
    """
    return tuple(map(_read_input, texts))


def _read_input(text: str) -> torch.Tensor:
    sizes, _, kind = text.partition(":")
    words = sizes.split(",")
    if not all(word.strip().isdigit() for word in words) or (kind or "float32") not in _TYPES:
        raise UnsupportedError(
            f"--input {text!r} is not known; write sizes such as 1,3,224,224 and, if it is not float32, a type: "
            f"1,128:int64. Types are {', '.join(_TYPES)}."
        )
    shape = [int(word) for word in words]
    dtype = _TYPES[kind or "float32"]
    return torch.randn(shape) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)
