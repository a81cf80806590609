"""When runs become replays of a recorded graph, what is checked before, and what is said where they do not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import pytest
import torch

import fxprune
from fxprune.errors import UnsupportedError
from fxprune.lowering.cuda.recording import Recording
from tests.compiling import TOLERANCE, draw_masks, largest_difference, row_groups, run_masked
from tests.lowering.cuda.test_program import MODELS
from tests.lowering.cuda.twin import TwinDevice, program_of


class Graphs(TwinDevice):
    """A device that records: a replay computes again and leaves its results where those of the recording lie."""

    def __init__(self, *, stale: bool = False, refusal: str = "") -> None:
        self.torch_device = torch.device("cpu")
        self.others = False
        self.replays = 0
        self._stale, self._refusal = stale, refusal

    def is_recording(self) -> bool:
        return self.others

    def record(self, run: Callable[[], list[object]]) -> tuple[Callable[[], None], list[object]]:
        if self._refusal:
            raise UnsupportedError(self._refusal)
        outputs = run()

        def replay() -> None:
            self.replays += 1
            for place, value in zip(outputs, run(), strict=True):
                if isinstance(place, torch.Tensor) and isinstance(value, torch.Tensor) and not self._stale:
                    place.copy_(value)

        return replay, outputs


class Program:
    """Doubles its input; counts its runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, inputs: Sequence[object]) -> list[object]:
        self.runs += 1
        (x,) = inputs
        assert isinstance(x, torch.Tensor)
        return [x * 2, 7]


def _values(results: Sequence[object]) -> list[float]:
    assert isinstance(results[0], torch.Tensor)
    values: list[float] = results[0].tolist()
    return values


def test_the_third_run_is_a_replay() -> None:
    device, program = Graphs(), Program()
    recording = Recording(device, program)
    results = []
    for number in range(4):
        results.append(recording.run([torch.full((2,), float(number))]))
        assert recording.is_replayed == (number > 0)
    assert [_values(found) for found in results] == [[0.0] * 2, [2.0] * 2, [4.0] * 2, [6.0] * 2]
    assert [found[1] for found in results] == [7] * 4
    assert device.replays == 3, "one to check, two to run"
    assert recording.reason is None


def test_inputs_may_lie_otherwise_than_the_recorded_ones() -> None:
    recording = Recording(Graphs(), Program())
    x = torch.arange(6.0).reshape(2, 3)
    for value in (x, x, x.t().contiguous().t(), x[:1].expand(2, 3)):
        assert torch.equal(torch.as_tensor(recording.run([value])[0]), value * 2)


def test_while_somebody_else_records_nothing_is_replayed_nor_counted() -> None:
    device, program = Graphs(), Program()
    recording = Recording(device, program)
    device.others = True
    for _ in range(3):
        recording.run([torch.ones(2)])
    assert (program.runs, recording.is_replayed) == (3, False)
    device.others = False
    recording.run([torch.ones(2)])
    recording.run([torch.ones(2)])
    device.others = True
    before, replays = program.runs, device.replays
    recording.run([torch.ones(2)])
    assert (program.runs, device.replays) == (before + 1, replays)


@pytest.mark.parametrize(
    ("device", "value", "reason"),
    [
        (Graphs(refusal="an operator waits for the GPU"), torch.ones(2), "an operator waits for the GPU"),
        (Graphs(stale=True), torch.ones(2), "has another result 0 than the run"),
    ],
)
def test_what_cannot_be_replayed_stays_as_it_is_and_says_why(
    device: Graphs, value: torch.Tensor, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fxprune.lowering.cuda.recording")
    recording = Recording(device, Program())
    for number in range(1, 5):
        assert _values(recording.run([value * number])) == [2.0 * number] * 2
    assert recording.reason is not None
    assert reason in recording.reason
    assert [record.message for record in caplog.records] == [f"runs stay one launch after another: {recording.reason}"]


def test_an_input_that_is_no_tensor_is_named() -> None:
    recording = Recording(Graphs(), lambda inputs: [inputs[0]])
    for _ in range(3):
        assert recording.run([3]) == [3]
    assert recording.reason == "input 0 is a int; a graph's inputs are tensors."


def test_a_result_that_follows_the_numbers_is_named() -> None:
    recording = Recording(Graphs(), lambda inputs: [float(torch.as_tensor(inputs[0]).sum())])
    for _ in range(3):
        assert recording.run([torch.ones(2)]) == [2.0]
    assert recording.reason == "result 0 is 2.0 and not a tensor; a replay cannot follow it."


def test_results_that_are_not_finite_are_the_same_where_they_are() -> None:
    recording = Recording(Graphs(), lambda inputs: [torch.as_tensor(inputs[0]).log()])
    x = torch.tensor([-1.0, 0.0, 2.0])
    for _ in range(3):
        recording.run([x])
    assert recording.is_replayed


def test_a_run_without_memory_for_more_is_not_recorded() -> None:
    runs: list[int] = []

    def forward(inputs: Sequence[object]) -> list[object]:
        runs.append(len(runs))
        if len(runs) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(inputs)

    recording = Recording(Graphs(), forward)
    for _ in range(4):
        recording.run([torch.ones(2)])
    assert recording.reason == "CUDA out of memory"


@pytest.mark.usefixtures("no_nvcc", "all_kernels")
def test_a_whole_program_is_replayed() -> None:
    make, shape = MODELS["chain"]
    model, x = make(), torch.randn(shape)
    masks = draw_masks(model, row_groups(16, 0.4))
    compiled = fxprune.compile(model, masks, {"kind": "cuda", "arch": "sm_90a"}, example_inputs=x)
    program = program_of(compiled)

    class Twin(Graphs):
        def __init__(self) -> None:
            super().__init__()
            TwinDevice.__init__(self, program)

    program.tie(Twin())
    with torch.inference_mode():
        results = [compiled(x + number) for number in range(2)]
    results += [compiled(x + number) for number in range(2, 5)]
    assert program.recording is not None
    assert program.recording.is_replayed
    for number, found in enumerate(results):
        assert largest_difference(found, run_masked(model, masks, x + number)) <= TOLERANCE
