"""The lottery: how much each round keeps, where trainings begin, controls, and wrong calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from fxprune.errors import ArtifactError, MaskError, TrainingError
from fxprune.lottery import Lottery, Plan, Task, find_prunable, measure_density
from fxprune.lottery.task import Labelled
from tests.lottery.tiny import PLAN, make_model, make_task, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("lottery")
    run(place)
    return place


@pytest.fixture
def lottery(folder: Path) -> Iterator[Lottery[Labelled]]:
    with Lottery(make_task(), PLAN, folder) as found:
        yield found


def test_stem_and_head_stay_dense() -> None:
    assert list(find_prunable(make_model())) == ["3.weight", "6.weight"]


def test_layers_are_excluded_by_name() -> None:
    assert list(find_prunable(make_model(), ("0", "3.weight"))) == ["6.weight", "11.weight"]


def test_refuses_an_unknown_exclusion() -> None:
    with pytest.raises(MaskError, match="names 'conv1', which is no"):
        find_prunable(make_model(), ("conv1",))


def test_each_round_keeps_exactly_its_share_of_all_layers_together(lottery: Lottery[Labelled]) -> None:
    cells = 8 * 4 * 9 + 8 * 8 * 9
    for number, ticket in enumerate(lottery.find_tickets(), start=1):
        assert sum(int(mask.sum()) for mask in ticket.masks.values()) == round(0.8**number * cells)


def test_masks_only_shrink_and_keep_the_largest(lottery: Lottery[Labelled]) -> None:
    first, second, _ = lottery.find_tickets()
    before = torch.cat([first.trained.state[name].abs()[mask] for name, mask in first.masks.items()])
    kept = torch.cat([second.masks[name][mask] for name, mask in first.masks.items()])
    assert not any(bool((mask & ~first.masks[name]).any()) for name, mask in second.masks.items())
    assert before[kept].min() >= before[~kept].max()


def test_pruned_weights_are_zero_after_training(lottery: Lottery[Labelled]) -> None:
    ticket = lottery.find_ticket(3)
    for name, mask in ticket.masks.items():
        assert torch.equal(ticket.trained.state[name] != 0, mask)


def test_rewinding_takes_weights_buffers_and_the_schedule_of_that_epoch(lottery: Lottery[Labelled]) -> None:
    start, first = lottery.find_start("rewind"), lottery.find_start("init")
    assert (start.epoch, first.epoch) == (1, 0)
    assert int(start.model["1.num_batches_tracked"]) == 5
    assert not torch.equal(start.model["1.running_mean"], first.model["1.running_mean"])
    assert bool((start.model["3.weight"] != 0).all())
    assert len(lottery.find_ticket(1).trained.losses) == PLAN.epochs - 1
    assert len(lottery.find_ticket(0).trained.losses) == PLAN.epochs


def test_the_schedule_goes_on_after_rewinding(tmp_path: Path) -> None:
    rates: list[float] = []

    def note(model: nn.Module, batch: Labelled, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        rates.append(optimizer.param_groups[0]["lr"])
        return task.step(model, batch, optimizer)

    task = make_task()
    noting = dataclasses.replace(task, step=note)
    with Lottery(noting, PLAN, tmp_path) as lottery:
        lottery.find_ticket(1)
    per_epoch = [round(rate, 6) for rate in rates[::5]]
    assert per_epoch == [0.05, 0.05, 0.005, 0.0005, 0.05, 0.005, 0.0005]


def test_controls_are_as_sparse_as_the_round(lottery: Lottery[Labelled]) -> None:
    density = measure_density(lottery.find_ticket(2).masks)
    assert measure_density(lottery.keep_one_shot(2)) == density
    assert measure_density(lottery.keep_random(2)) == density
    assert not torch.equal(lottery.keep_random(2)["6.weight"], lottery.keep_one_shot(2)["6.weight"])


def test_random_masks_of_a_later_round_lie_inside_those_of_an_earlier_one(lottery: Lottery[Labelled]) -> None:
    few, many = lottery.keep_random(3), lottery.keep_random(1)
    assert not any(bool((few[name] & ~many[name]).any()) for name in few)


def test_fine_tuning_begins_at_the_trained_weights(lottery: Lottery[Labelled]) -> None:
    start = lottery.find_start("trained")
    assert torch.equal(start.model["3.weight"], lottery.find_ticket(0).trained.state["3.weight"])
    assert start.epoch == PLAN.rewind


def test_build_gives_the_trained_network(lottery: Lottery[Labelled]) -> None:
    ticket = lottery.find_ticket(2)
    evaluate = lottery.task.evaluate
    assert evaluate is not None
    assert evaluate(lottery.build(ticket)) == ticket.trained.score


def test_a_finished_ticket_is_not_trained_again(lottery: Lottery[Labelled], folder: Path) -> None:
    before = (folder / "ticket-again.pt").stat().st_mtime_ns
    lottery.train("again", lottery.find_ticket(3).masks, "reinit")
    assert (folder / "ticket-again.pt").stat().st_mtime_ns == before


def test_refuses_a_known_name_with_other_masks(lottery: Lottery[Labelled]) -> None:
    with pytest.raises(ArtifactError, match="trained before with other masks"):
        lottery.train("again", lottery.find_ticket(1).masks, "reinit")


def test_refuses_the_folder_of_another_plan(folder: Path) -> None:
    with (
        pytest.raises(ArtifactError, match="belongs to another lottery"),
        Lottery(make_task(), dataclasses.replace(PLAN, seed=6), folder),
    ):
        pass


def test_refuses_a_folder_in_use(lottery: Lottery[Labelled], folder: Path) -> None:
    with pytest.raises(ArtifactError, match="in use"), Lottery(make_task(), PLAN, folder):
        lottery.find_ticket(0)


def test_refuses_a_name_that_is_a_path(lottery: Lottery[Labelled]) -> None:
    with pytest.raises(TrainingError, match="becomes a file name"):
        lottery.train("../x", lottery.find_ticket(1).masks)


def test_refuses_reinit_of_a_model_that_is_always_the_same(tmp_path: Path) -> None:
    model = make_model()
    fixed = dataclasses.replace(make_task(), make_model=lambda: model)
    with Lottery(fixed, PLAN, tmp_path) as lottery, pytest.raises(TrainingError, match="gives the same ones"):
        lottery.find_start("reinit")


def test_refuses_a_training_that_diverges(tmp_path: Path) -> None:
    def diverge(model: nn.Module, batch: Labelled, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        del model, batch, optimizer
        return torch.tensor(float("nan"))

    wild: Task[Labelled] = dataclasses.replace(make_task(), step=diverge, make_scheduler=None)
    with Lottery(wild, PLAN, tmp_path) as lottery, pytest.raises(TrainingError, match="diverged"):
        lottery.find_ticket(0)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Plan(0), "epochs"),
        (lambda: Plan(4, rate=1.0), "rate"),
        (lambda: Plan(4, rounds=-1), "rounds"),
        (lambda: Plan(4, rewind_epoch=4), "rewind_epoch"),
    ],
)
def test_refuses_a_wrong_plan(make: Callable[[], Plan], name: str) -> None:
    with pytest.raises(TrainingError, match=f"{name} is"):
        make()


def test_the_default_rewinds_to_five_percent_and_at_least_one_epoch() -> None:
    assert [Plan(epochs).rewind for epochs in (160, 16, 2, 1)] == [8, 1, 1, 0]
