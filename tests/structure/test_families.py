"""The structures that pruning methods of the literature leave behind are named."""

from __future__ import annotations

import numpy as np
import pytest

from fxprune.structure.families import name_family
from tests.structure.drawing import FAMILIES, draw
from tests.structure.masks import BoolArray


@pytest.mark.parametrize("name", FAMILIES)
def test_family_is_named(name: str) -> None:
    assert name_family(draw(name), 1, 9).startswith(FAMILIES[name]), name_family(draw(name), 1, 9)


def test_figures_are_in_the_sentence() -> None:
    mask = np.zeros((8, 36), dtype=np.bool_)
    mask[:6, :18] = True
    assert name_family(mask, 1, 9) == "channels: 6 of 8 outputs and 2 of 4 inputs, dense between them"
    mask[:] = False
    mask[:4, [0, 3, 7]] = mask[4:, [1, 20, 30]] = True
    assert name_family(mask, 1, 9) == ("row groups of column vectors: 2 of 4 rows, 3 of 36 columns on average")


def test_dense_and_empty() -> None:
    assert name_family(np.ones((4, 9), dtype=np.bool_)) == "dense"
    assert name_family(np.zeros((4, 9), dtype=np.bool_)) == "empty: nothing is kept"


def test_dead_channels_beside_an_unstructured_rest() -> None:
    mask = np.random.default_rng(0).random((32, 36)) < 0.4
    mask[8:] = False
    mask[:, 9:18] = False
    sentence = name_family(mask, 1, 9)
    assert sentence.startswith("unstructured, density 0.3")
    assert sentence.endswith("between 8 of 32 outputs and 3 of 4 inputs that are alive")


def test_a_few_strays_do_not_hide_row_groups() -> None:
    mask = draw("column vectors")
    mask[0, np.flatnonzero(~mask[0])[:2]] = True
    assert name_family(mask, 1, 9).startswith("row groups of column vectors")


def test_rows_of_different_conv_groups_are_no_group() -> None:
    half: BoolArray = np.random.default_rng(0).random((16, 36)) < 0.3
    assert name_family(np.concatenate([half, half]), 1, 9).startswith("row groups")
    assert name_family(np.concatenate([half, half]), 2, 9) == "unstructured"


def test_depthwise_rows_are_no_groups() -> None:
    mask = np.zeros((8, 9), dtype=np.bool_)
    mask[:, [0, 4]] = True
    mask[0, 1] = True
    assert name_family(mask, 8, 9) == "unstructured"
