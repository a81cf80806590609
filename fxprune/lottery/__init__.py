"""Lottery tickets: iterative magnitude pruning with rewinding, and the retraining of any ticket with its masks held."""

from fxprune.lottery.holding import hold_masks
from fxprune.lottery.plan import Plan
from fxprune.lottery.prunable import find_prunable, measure_density
from fxprune.lottery.recipe import RECIPES, Recipe, find_recipe
from fxprune.lottery.search import Lottery, Start, Ticket
from fxprune.lottery.task import Task, measure_accuracy, train_batch
from fxprune.lottery.training import Snapshot, Trained

__all__ = [
    "RECIPES",
    "Lottery",
    "Plan",
    "Recipe",
    "Snapshot",
    "Start",
    "Task",
    "Ticket",
    "Trained",
    "find_prunable",
    "find_recipe",
    "hold_masks",
    "measure_accuracy",
    "measure_density",
    "train_batch",
]
