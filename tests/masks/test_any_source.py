"""Whatever mapping or list is given, it is read or refused with an error of ours."""

from __future__ import annotations

import contextlib

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from fxprune import FxpruneError, load_masks
from tests.masks.sources import make_net

NET = make_net()
KEYS = [
    "conv.weight",
    "conv",
    "fc.weight",
    "fc",
    "conv.bias",
    "conv.weight_mask",
    "fc.mask",
    "module.fc.weight",
    "state",
    "state_dict",
    "masks",
    "mask",
    "model",
    "backward_masks",
    "weight",
    "bias",
    "_input_",
    "fc.bitmask",
    "fc.shape",
    "mask_conv___weight",
    "bn.weight",
]
VALUES = [
    torch.ones(4, 2, 3, 3),
    torch.zeros(5, 9),
    torch.ones(4),
    torch.tensor(1),
    torch.ones(0, 3),
    torch.rand(5, 9),
    torch.ones(5, 9, dtype=torch.bool),
    torch.ones(2, 2, dtype=torch.complex64),
    torch.eye(5).to_sparse(),
    torch.ones(3, 2, dtype=torch.uint8),
    torch.tensor([5, 9]),
    torch.empty(5, 9, device="meta"),
    np.ones((5, 9)),
    np.array(["text"]),
]
SOURCES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from(VALUES),
    lambda inner: (
        st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5) | st.integers(), inner, max_size=4)
        | st.lists(inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")
@given(
    source=SOURCES,
    with_model=st.booleans(),
    convention=st.sampled_from(["keep", "prune"]),
    threshold=st.sampled_from([None, 0.5]),
)
def test_is_read_or_refused(source: object, with_model: bool, convention: str, threshold: float | None) -> None:
    with contextlib.suppress(FxpruneError):
        masks = load_masks(
            source,  # type: ignore[arg-type]  # anything at all
            model=NET if with_model else None,
            convention=convention,
            threshold=threshold,
        )
        assert all(isinstance(name, str) and mask.dtype == torch.bool for name, mask in masks.items())


@pytest.mark.parametrize(
    ("value", "message"), [(VALUES[11], "on the meta device"), (torch.ones(2, 2).to(torch.complex64), "complex64")]
)
def test_tensors_without_readable_values(value: torch.Tensor, message: str) -> None:
    with pytest.raises(FxpruneError, match=message):
        load_masks({"fc.weight_mask": value})
