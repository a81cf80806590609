"""Targets of kind cuda: what is read, what is refused."""

from __future__ import annotations

import pytest

from fxprune.codegen.cuda.target import ARCHITECTURES, find_arch, read_cuda_target
from fxprune.errors import UnsupportedError


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_is_read(arch: str) -> None:
    target = read_cuda_target({"kind": "cuda", "arch": arch})
    assert target.arch == arch
    assert arch in target.description


def test_peaks_are_those_of_the_data_sheets() -> None:
    found = {arch: read_cuda_target({"kind": "cuda", "arch": arch}).peak_gflops("float32") for arch in ARCHITECTURES}
    wanted = {"sm_80": 19.5e3, "sm_86": 35.6e3, "sm_89": 82.6e3, "sm_90a": 66.9e3}
    assert found == pytest.approx(wanted, rel=0.01)


def test_tf32_has_half_the_rate_of_16_bits_where_it_is_allowed() -> None:
    for arch in ARCHITECTURES:
        wanted = {"kind": "cuda", "arch": arch}
        strict, rounded = read_cuda_target(wanted), read_cuda_target(wanted, "tf32")
        assert rounded.peak_gflops("float32") == rounded.peak_gflops("bfloat16") / 2
        assert strict.peak_gflops("bfloat16") == rounded.peak_gflops("bfloat16")
        assert "float32 as tf32" in rounded.description


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"kind": "cuda"}, "names the architecture None; kernels are compiled for sm_80, sm_86, sm_89, sm_90a"),
        ({"kind": "cuda", "arch": "sm_75"}, "names the architecture 'sm_75'"),
        ({"kind": "cuda", "arch": "sm_90a", "threads": 2}, r"has \['threads'\]; a target of kind 'cuda' has an 'arch'"),
    ],
)
def test_other_targets_are_refused(wanted: dict[str, object], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        read_cuda_target(wanted)


def test_a_gpu_is_named_by_its_capability() -> None:
    assert find_arch((9, 0)) == "sm_90a"
    assert find_arch((8, 6)) == "sm_86"
    with pytest.raises(UnsupportedError, match="This GPU is an sm_120; kernels are compiled for"):
        find_arch((12, 0))
