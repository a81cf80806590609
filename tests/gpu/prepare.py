"""Compile the kernels of the tests in this folder on any machine; FXPRUNE_CACHE_DIR says where to."""

from __future__ import annotations

import os
import sys
from unittest import mock

import fxprune
from fxprune.codegen.cuda.cache import CACHE_VARIABLE, open_library
from tests.codegen.cuda.suite import make
from tests.codegen.suite import draw_tensors
from tests.gpu.test_columns_on_gpu import ALL
from tests.gpu.test_compile_on_gpu import KERNELS, KINDS, TUNED, draw_resnet18
from tests.lowering.cuda.test_program import MODELS
from tests.lowering.cuda.test_tensor_program import draw_model


def main(arch: str = "sm_90a") -> None:
    """Compile for an architecture."""
    if not os.environ.get(CACHE_VARIABLE):
        raise SystemExit(f"{CACHE_VARIABLE} is not set; it names the folder for what is compiled.")
    open_library({name: make(case, draw_tensors(case.layer, name)).script(name) for name, case in ALL.items()}, arch)
    for kind, precision in KINDS:
        model, masks, x = draw_model(TUNED, kind)
        target, options = {"kind": "cuda", "arch": arch}, {"precision": precision}
        fxprune.tune(model, masks, target, example_inputs=x, only="build", options=options)
    model, masks, x = draw_resnet18()
    fxprune.compile(model, masks, {"kind": "cuda", "arch": arch}, example_inputs=x, options=KERNELS)
    with mock.patch("fxprune.lowering.cuda.select.predict_dense_us", return_value=1e9):
        for name in MODELS:
            for kind, precision in KINDS:
                model, masks, x = draw_model(name, kind)
                wanted = KERNELS | {"precision": precision}
                fxprune.compile(model, masks, {"kind": "cuda", "arch": arch}, example_inputs=x, options=wanted)


if __name__ == "__main__":
    main(*sys.argv[1:])
