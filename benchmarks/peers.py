"""The engines of the benchmark: each turns a problem into a callable that runs it once.

Every dense peer gets the masked fp32 model and two things in its favour: an input already in the layout that it likes,
and the settings under which it is fastest. It folds batch norms and fuses epilogues by itself.
"""

from __future__ import annotations

import functools
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.case import Problem
from fxprune.errors import FxpruneError

Forward = Callable[[], torch.Tensor]
"""Runs the model once on the problem's input; returns the output [N, ...]."""


class PeerError(Exception):
    """A peer cannot be built or run; the message says why."""


@dataclass(frozen=True)
class Setting:
    """What a peer is built with.

    Attributes:
        problem: Model, masks and input.
        threads: Number of threads.
        folder: An empty folder for files that must live as long as the peer.
    """

    problem: Problem
    threads: int
    folder: Path


@dataclass(frozen=True)
class Peer:
    """One engine.

    Attributes:
        name: Name on the command line.
        title: Name in tables and plots.
        dense: Whether it computes all weights, pruned ones too.
        tolerance: Largest error of its output against float64, as a share of the largest output.
        build: Makes the callable.
        settings: The settings it runs under, for the record.
    """

    name: str
    title: str
    dense: bool
    tolerance: float
    build: Callable[[Setting], Forward]
    settings: str


@dataclass(frozen=True)
class BuiltPeer:
    """A peer that is ready to run."""

    peer: Peer
    forward: Forward
    build_seconds: float


# Engines document no exceptions of their own for a model that they cannot take; these are the builtin kinds they raise.
BUILD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    FxpruneError,
    ImportError,
    LookupError,
    OSError,
    PeerError,
    RuntimeError,
    TypeError,
    ValueError,
)


def build_peer(peer: Peer, setting: Setting) -> BuiltPeer:
    """Build a peer and run it once.

    Raises:
        PeerError: The engine is not installed or cannot take the model.
    """
    torch.set_num_threads(setting.threads)
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Deprecations inside the exporters; the output is checked all the same.
            forward = peer.build(setting)
            forward()
    except BUILD_ERRORS as error:
        raise PeerError(_describe(error)) from error
    return BuiltPeer(peer, forward, time.perf_counter() - start)


def _describe(error: Exception) -> str:
    """One line without the folders of this machine: it ends up in files that others read."""
    first_line = (str(error).strip() or "no message").splitlines()[0]
    short = re.sub(r"(?:/[\w.@+-]+)+/(?=[\w.@+-])", ".../", first_line)
    return short if isinstance(error, PeerError) else f"{type(error).__name__}: {short}"


def _build_eager(setting: Setting) -> Forward:
    return _call_channels_last(setting.problem.masked, setting)


def _call_channels_last(model: Callable[[torch.Tensor], torch.Tensor], setting: Setting) -> Forward:
    x = setting.problem.x
    if x.ndim == 4:
        x = x.to(memory_format=torch.channels_last)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return model(x)

    return forward


def _build_compiled(setting: Setting) -> Forward:
    import torch._dynamo
    import torch._inductor.config

    torch._inductor.config.freezing = True  # Read again if dynamo ever compiles anew, so it is set for good.
    torch._dynamo.reset()  # Another model of the same class would count against dynamo's recompile limit.
    return _call_channels_last(torch.compile(setting.problem.masked, dynamic=False), setting)


def _build_onnxruntime(setting: Setting) -> Forward:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    options.inter_op_num_threads = 1
    # Its workers spin while a call runs, which makes it faster, and stop at its end. By default they go on for some
    # 40 ms more, at the cost of whoever is measured next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(export_onnx(setting), options, providers=["CPUExecutionProvider"])
    except (errors.Fail, errors.InvalidGraph, errors.NotImplemented, errors.RuntimeException) as error:
        raise PeerError(str(error)) from error
    feed = {session.get_inputs()[0].name: setting.problem.x.numpy()}

    def forward() -> torch.Tensor:
        return torch.from_numpy(session.run(None, feed)[0])

    return forward


def _build_openvino(setting: Setting) -> Forward:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(export_onnx(setting)),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": str(setting.threads),
        },
    )
    request = compiled.create_infer_request()
    feed = {0: setting.problem.x.numpy()}

    def forward() -> torch.Tensor:
        return torch.from_numpy(request.infer(feed, share_inputs=True)[0])

    return forward


@dataclass(frozen=True)
class CompiledForward:
    """The callable of the fxprune peer.

    Attributes:
        compiled: The compiled module; its `report` says what was done to every layer.
        x: Input, contiguous.
    """

    compiled: nn.Module
    x: torch.Tensor

    def __call__(self) -> torch.Tensor:
        """Run the model once."""
        with torch.no_grad():
            y: torch.Tensor = self.compiled(self.x)
        return y


def _build_fxprune(setting: Setting, seconds: float | None = None, database: Path | None = None) -> Forward:
    import fxprune

    problem = setting.problem
    compiled = fxprune.compile(
        problem.model,
        problem.masks,
        example_inputs=(problem.x,),
        tune=seconds,
        database=database or setting.folder / "records.jsonl",  # never what this machine's user has tuned
        options={"threads": setting.threads},
    )
    return CompiledForward(compiled, problem.x)


def export_onnx(setting: Setting) -> str:
    """Export the masked model to ONNX, once a folder; return the path of the file."""
    path = setting.folder / "model.onnx"
    if not path.exists():
        with torch.no_grad():
            torch.onnx.export(setting.problem.masked, (setting.problem.x,), path, dynamo=True, verbose=False)
    return str(path)


# Tolerances: an engine may sum in any order and may use Winograd's algorithm, which costs a decimal; fxprune promises
# 1e-5 whatever it does.
PEERS = (
    Peer("eager", "torch eager", True, 1e-4, _build_eager, "channels_last"),
    Peer("compile", "torch.compile", True, 1e-4, _build_compiled, "channels_last, inductor freezing"),
    Peer("onnxruntime", "ONNX Runtime", True, 1e-4, _build_onnxruntime, "force_spinning_stop"),
    Peer("openvino", "OpenVINO", True, 1e-4, _build_openvino, "f32 precision hint, latency hint"),
    Peer("fxprune", "fxprune", False, 1e-5, _build_fxprune, "measured selection"),
)
"""All peers, in the order in which they are built; fxprune last."""


def tuned(peer: Peer, seconds: float, database: Path | None = None) -> Peer:
    """Return the fxprune peer with a search before it compiles; its build time includes the search.

    Args:
        peer: The peer as it is in `PEERS`.
        seconds: How long the search lasts at most.
        database: Its records; what they have is not measured again. None: a file of this build alone.
    """
    build = functools.partial(_build_fxprune, seconds=seconds, database=database)
    return replace(peer, build=build, settings=f"tuned for at most {seconds:g} s")
