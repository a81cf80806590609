"""The program of a build process: TVM turns scripts into object files, far from the process that runs the model.

TVM's compiler takes 200 MB of a process for good. So `fxprune.codegen.process` runs this file in a process of its own;
it imports nothing of fxprune, which would load torch. A request is one line of JSON on standard input, the answer one
line on standard output: {"answer": ...} or {"error": text}.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

Request = Mapping[str, object]
Answer = object


def describe_target(request: Request) -> Answer:
    """Complete a TVM target and read its vectors.

    Args:
        request: "wanted": a TVM target of kind llvm as a dict; without "mcpu" it is this machine's.

    Returns:
        "target": the dict with its "mcpu"; "features": those of "asked" (LLVM's names) that the processor has.
    """
    import tvm

    wanted = dict(_mapping(request["wanted"]))
    wanted.setdefault("mcpu", str(tvm.get_global_func("target.llvm_get_system_cpu")()))
    made = tvm.target.Target(wanted)
    has = tvm.get_global_func("target.target_has_feature")
    return {"target": wanted, "features": [name for name in _strings(request["asked"]) if has(name, made)]}


def build_object(request: Request) -> Answer:
    """Compile functions into one object file.

    Args:
        request: "scripts": TVMScript by global symbol; "target": a TVM target as a dict; "path": of the object file.
    """
    import tvm

    functions = {name: _reader().read_script(text) for name, text in _mapping(request["scripts"]).items()}
    executable = tvm.compile(tvm.IRModule(functions), target=tvm.target.Target(dict(_mapping(request["target"]))))
    executable.export_library(str(request["path"]), fcompile=_keep_object)
    return None


def _keep_object(output: str, objects: Sequence[str], **options: object) -> None:
    """Take TVM's object file as it is; the signature is that of `export_library`'s fcompile."""
    del options
    (only,) = objects
    shutil.copyfile(only, output)


_keep_object.output_format = "o"  # type: ignore[attr-defined]  # read by export_library


def write_cuda(request: Request) -> Answer:
    """Turn functions into CUDA source; no GPU, driver or nvcc is needed.

    Args:
        request: "scripts": TVMScript by global symbol, bound to the axes of a grid; "arch": e.g. "sm_90a".

    Returns:
        "source": the text; "parameters": names of every kernel's arguments in order, by the kernel's symbol.
    """
    import tvm
    from tvm.tirx.build import codegen_build, split_host_device_mods

    # TVM would hand the text to nvcc on a machine with a GPU: the text is all that is wanted.
    tvm.register_global_func("tvm_callback_cuda_compile", lambda code, _target: code, override=True)
    target = tvm.target.Target({"kind": "cuda", "arch": str(request["arch"])}, host={"kind": "llvm"})
    functions = {name: _reader().read_script(text) for name, text in _mapping(request["scripts"]).items()}
    module = tvm.tirx.transform.BindTarget(target)(tvm.IRModule(functions))
    options = {"tirx.UnrollLoop": {"explicit_unroll": False}}  # nvcc unrolls: the text stays short
    with target, tvm.transform.PassContext(config=options):
        pipeline, _, finish = tvm.tirx.get_default_tir_pipeline(target)
        _, parts = split_host_device_mods(pipeline(module))
        ((device, kernels),) = parts.items()
        kernels = finish()(kernels)
        source = str(codegen_build(kernels, device).inspect_source())
    parameters = {name.name_hint: [p.name for p in kernel.params] for name, kernel in kernels.functions.items()}
    return {"source": source, "parameters": parameters}


_SERVICES = {"describe_target": describe_target, "build_object": build_object, "write_cuda": write_cuda}


@cache
def _reader() -> ModuleType:
    """Load the file beside this one, without the package that both are in."""
    found = importlib.util.spec_from_file_location("reader", Path(__file__).with_name("reader.py"))
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, found {type(value).__name__}")
    return value


def _strings(value: object) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, found {type(value).__name__}")
    return [str(item) for item in value]


_REFUSALS = (
    *(ArithmeticError, AttributeError, LookupError, NameError, OSError, RuntimeError, SyntaxError, TypeError),
    ValueError,
)
"""What TVM raises, and the reader of scripts."""


def answer(line: bytes) -> bytes:
    """Serve one request; whatever TVM raises becomes the answer."""
    request = _mapping(json.loads(line))
    try:
        reply = {"answer": _SERVICES[str(request["service"])](request)}
    except _REFUSALS as error:
        reply = {"error": str(error) or type(error).__name__}
    return json.dumps(reply).encode() + b"\n"


def main() -> None:
    """Serve requests until standard input ends, which it does when the process at its other end does."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")  # unbuffered, it would leave off where a signal interrupts
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what TVM prints is no answer
    sys.modules["torch"] = None  # type: ignore[assignment]  # TVM would load it for conversions that are not needed
    _reader()  # before the first request comes

    for line in sys.stdin.buffer:
        answers.write(answer(line))
        answers.flush()


if __name__ == "__main__":
    main()
