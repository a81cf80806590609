"""The `target` argument, and the versions that crash."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re

import pytest

from fxprune.codegen import target as target_module
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.cpu.row_walk import RowsSchedule
from fxprune.codegen.target import CpuTarget, check_runs_here, check_versions, parse_target
from fxprune.errors import UnsupportedError
from tests.codegen.suite import Case, Suite, conv, draw_pattern

HASWELL = {"kind": "llvm", "mcpu": "haswell"}


def test_cpu_is_this_machine() -> None:
    target = parse_target("cpu", 2)
    assert target.mcpu == json.loads(target.description)["mcpu"]
    assert target.lanes in (4, 8, 16)
    assert target.threads == 2
    assert parse_target({"kind": "llvm"}, 2) == target


@pytest.mark.parametrize(
    ("wanted", "lanes", "registers"),
    [
        (HASWELL, 8, 16),
        (json.dumps(HASWELL), 8, 16),
        ({"kind": "llvm", "mcpu": "x86-64"}, 4, 16),
        ({"kind": "llvm", "mcpu": "sapphirerapids"}, 16, 32),
        ({"kind": "llvm", "mcpu": "x86-64", "mattr": ["+avx2", "+fma"]}, 8, 16),
        ({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"}, 4, 32),
    ],
)
def test_vectors_follow_the_processor(wanted: str | dict[str, object], lanes: int, registers: int) -> None:
    target = parse_target(wanted, 1)
    assert (target.lanes, target.registers) == (lanes, registers)
    assert json.loads(target.description)["kind"] == "llvm"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("gpu", "target='gpu' is not known: pass 'cpu', 'cuda', 'torch' or a TVM target"),
        ('{"kind": "metal"}', "compiles for 'cpu', 'cuda' or a dict of kind 'llvm' or 'cuda'"),
        ({"kind": "nonsense"}, "is not supported by this version"),
        ({"mcpu": "haswell"}, "is not supported by this version"),
        ('{"kind": "llvm"', "is not known: pass 'cpu'"),
        ("[1]", "is not known: pass 'cpu'"),
        ("", "target='' is not known"),
        ({"kind": "llvm", "mcpu": 3}, "is not a TVM target: Option 'mcpu': expected type 'str'"),
        ({"kind": "llvm", "cores": 1}, "is not a TVM target: Unknown config option 'cores'"),
    ],
)
def test_another_target_is_refused(wanted: str | dict[str, object], message: str) -> None:
    with pytest.raises(UnsupportedError, match=re.escape(message)):
        parse_target(wanted, 2)


def test_a_target_of_another_type_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="target is a int; pass 'cpu' or"):
        parse_target(3, 2)  # type: ignore[arg-type]


AARCH64 = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"}


def test_another_kind_of_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with pytest.raises(UnsupportedError, match=r"of kind aarch64, this machine is x86_64.*Compile on a machine of"):
        check_runs_here(parse_target(AARCH64, 1), measured=False)
    check_runs_here(parse_target({**HASWELL, "mtriple": "x86_64-linux-gnu"}, 1), measured=False)


def test_kernels_that_cannot_run_here_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    target = parse_target({"kind": "llvm", "mcpu": "skylake-avx512"}, 1)
    monkeypatch.setattr(target_module, "missing_features", lambda _, features: sorted({"avx512f"} & {*features}))
    with pytest.raises(UnsupportedError, match=r"skylake-avx512 use avx512f, which this machine has not.*'measure'"):
        check_runs_here(target, measured=True)
    check_runs_here(target, measured=False)
    check_runs_here(parse_target(HASWELL, 1), measured=True)


def test_the_installed_versions_work() -> None:
    check_versions()


@pytest.mark.parametrize("version", ["0.1.15", "0.1.15.post1", "0.1.13", "0.2.0", "1.0"])
def test_a_version_that_crashes_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: version)
    needed = f"apache-tvm-ffi {version} is installed.*pip install 'apache-tvm-ffi>=0.1.14.post0,<0.1.15'"
    with pytest.raises(UnsupportedError, match=needed):
        check_versions()


@pytest.mark.parametrize("version", ["0.1.14.post0", "0.1.14.post7", "0.1.14"])
def test_a_version_in_the_range_is_accepted(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: version)
    check_versions()


def _runs_here(target: CpuTarget) -> bool:
    """Whether this machine has the vectors of a narrower target of the same architecture."""
    return target.lanes <= parse_target("cpu", 1).lanes


@pytest.mark.parametrize("processor", ["haswell", "x86-64"])
def test_code_for_an_older_processor_is_exact(processor: str) -> None:
    target = parse_target({"kind": "llvm", "mcpu": processor}, 2)
    if parse_target("cpu", 1).registers != 32 or not _runs_here(target):
        pytest.skip("this machine cannot run the code of the other processor")
    shape = conv(5, 21, (7, 9), 3, padding=1)
    pattern = draw_pattern(shape, (8, 5), scattered=True)
    cases = {
        "rows": Case(shape, RowsSchedule(target.lanes, 2, (2, 2), "pixels"), pattern, activation="gelu", residual=True),
        "pixels": Case(shape, PixelsSchedule(target.lanes, 4, 1, "blocks"), pattern, activation="hardswish"),
    }
    suite = Suite(cases, target)
    for name in cases:
        suite.check(name)
