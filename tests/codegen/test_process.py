"""Build processes: shared, ended when idle, replaced when dead; TVM never gets into this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fxprune.codegen import process
from fxprune.codegen.build import Library
from fxprune.codegen.process import BuildError, BuildProcess, end_idle_processes, serve
from fxprune.codegen.target import CpuTarget, parse_target
from fxprune.errors import CodegenError

ROOT = Path(__file__).parents[2]
HASWELL = {"wanted": {"kind": "llvm", "mcpu": "haswell"}, "asked": ["avx2", "avx512f"]}


def _idle() -> list[BuildProcess]:
    return process._IDLE._processes


@pytest.fixture
def fresh() -> Iterator[None]:
    """No process before, none after."""
    end_idle_processes()
    yield
    end_idle_processes()


def _lines(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def _wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, "it did not happen within 20 s"
        time.sleep(0.02)


def test_a_request_is_answered() -> None:
    (answer,) = serve("describe_target", [HASWELL])
    assert answer == {"target": {"kind": "llvm", "mcpu": "haswell"}, "features": ["avx2"]}


@pytest.mark.usefixtures("fresh")
def test_requests_at_once_have_a_process_each_and_both_are_used_again() -> None:
    answers = serve("describe_target", [HASWELL, {**HASWELL, "asked": []}])
    assert [answer["features"] for answer in answers if isinstance(answer, dict)] == [["avx2"], []]
    first = {one.pid for one in _idle()}
    assert len(first) == 2
    serve("describe_target", [HASWELL, HASWELL])
    assert {one.pid for one in _idle()} == first


@pytest.mark.usefixtures("fresh")
def test_the_process_holds_tvm_but_not_torch() -> None:
    serve("describe_target", [HASWELL])
    (one,) = _idle()
    assert "libtvm_compiler" in _lines(one.pid)
    assert "libtorch" not in _lines(one.pid)


@pytest.mark.usefixtures("fresh")
def test_a_refusal_is_told_and_the_process_goes_on() -> None:
    with pytest.raises(BuildError, match="nonsense"):
        serve("describe_target", [{"wanted": {"kind": "nonsense"}, "asked": []}])
    (one,) = _idle()
    serve("describe_target", [HASWELL])
    assert _idle() == [one]


@pytest.mark.usefixtures("fresh")
def test_a_signal_in_the_middle_of_a_long_answer_loses_none_of_it() -> None:
    one = BuildProcess()
    unknown = "x" * 1_000_000  # repeated in the answer; a pipe holds some 64 KiB of it
    one.send(unknown)
    _wait_for(lambda: "pipe_write" in Path(f"/proc/{one.pid}/wchan").read_text())
    os.kill(one.pid, signal.SIGSTOP)  # what a debugger, a profiler or the shell's Ctrl-Z does
    _wait_for(lambda: "State:\tT" in Path(f"/proc/{one.pid}/status").read_text())
    os.kill(one.pid, signal.SIGCONT)
    end = threading.Timer(20, os.kill, (one.pid, signal.SIGKILL))  # the test fails rather than waits for ever
    end.start()
    assert one.receive() == {"error": repr(unknown)}
    end.cancel()
    one.close()


@pytest.mark.usefixtures("fresh")
def test_a_dead_process_is_replaced() -> None:
    serve("describe_target", [HASWELL])
    (one,) = _idle()
    os.kill(one.pid, signal.SIGKILL)
    time.sleep(0.1)
    serve("describe_target", [HASWELL])
    assert [other.pid for other in _idle()] != [one.pid]


@pytest.mark.usefixtures("fresh")
def test_a_crash_is_an_error_with_the_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "crash.py"
    program.write_text("import os, sys\nsys.stdin.readline()\nprint('no more memory', file=sys.stderr)\nos.abort()\n")
    monkeypatch.setattr(process, "_PROGRAM", program)
    target = CpuTarget("haswell", 8, 16, 1, '{"kind": "llvm", "mcpu": "haswell"}')
    with pytest.raises(
        CodegenError, match=r"TVM could not build one for haswell: the build process \d+ ended.*no more"
    ):
        Library({"one": ""}, target)


@pytest.mark.usefixtures("fresh")
def test_a_python_that_cannot_be_started_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(CodegenError, match=r"'/no/such/python' cannot be started.*Set sys.executable"):
        serve("describe_target", [HASWELL])


@pytest.mark.usefixtures("fresh")
def test_an_interrupted_request_costs_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: BuildProcess) -> dict[str, object]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BuildProcess, "receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            serve("describe_target", [HASWELL])
    assert not _idle()
    serve("describe_target", [HASWELL])


@pytest.mark.usefixtures("fresh")
def test_an_idle_process_ends_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LINGER_SECONDS", 0.05)
    serve("describe_target", [HASWELL])
    _wait_for(lambda: not _idle())


@pytest.mark.usefixtures("fresh")
def test_threads_do_not_share_a_process_at_the_same_time() -> None:
    found: list[object] = []

    def ask(name: str) -> None:
        found.append((name, serve("describe_target", [{"wanted": {"kind": "llvm", "mcpu": name}, "asked": []}])[0]))

    names = ["haswell", "skylake", "x86-64"]
    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [(name, {"target": {"kind": "llvm", "mcpu": name}, "features": []}) for name in names]
    assert sorted(found, key=str) == sorted(expected, key=str)


@pytest.mark.usefixtures("fresh")
def test_a_forked_child_starts_processes_of_its_own() -> None:
    program = """
        import os, warnings
        warnings.simplefilter("ignore")
        from fxprune.codegen.process import serve, _IDLE
        request = {"wanted": {"kind": "llvm", "mcpu": "haswell"}, "asked": []}
        serve("describe_target", [request])
        before = _IDLE._processes[0].pid
        child = os.fork()
        if child == 0:
            serve("describe_target", [request])
            code = int(_IDLE._processes[0].pid == before)
            _IDLE.close()
            os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        serve("describe_target", [request])
        assert _IDLE._processes[0].pid == before
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_tvm_is_never_loaded_where_the_model_runs() -> None:
    program = """
        import sys, torch, fxprune
        from pathlib import Path
        from torch import nn
        model = nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 32, 3)).eval()
        masks = {"0.weight": torch.zeros(64, 32, 3, 3, dtype=torch.bool), "2.weight": torch.ones(32, 64, 3, 3) > 0}
        masks["0.weight"][:, ::8] = True
        x = torch.randn(1, 32, 16, 16)
        compiled = fxprune.compile(model, masks, example_inputs=x, options={"threads": 2})
        compiled(x)
        assert not [name for name in sys.modules if name.split(".")[0] == "tvm"]
        maps = Path("/proc/self/maps").read_text()
        assert "libtvm_ffi" in maps and "libtvm_compiler" not in maps and "libtvm_runtime" not in maps
        print(compiled.report)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "rows" in done.stdout, "the case needs a kernel"


def test_this_process_has_no_compiler_of_tvm() -> None:
    parse_target({"kind": "llvm", "mcpu": "skylake"}, 1)
    assert "libtvm_compiler" in _lines(_idle()[0].pid)
