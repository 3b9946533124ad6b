"""Copies of states use the same memory again, unless the states have changed their form."""

from __future__ import annotations

import pytest
import torch

from laneway.checkpoint.staging import Staging


def test_the_next_copy_uses_the_same_memory_and_has_the_new_values() -> None:
    staging = Staging()
    first = staging.copy({"a": {"x": torch.tensor([1.0, 2.0]), "lr": 0.1, "betas": (0.9, 0.99)}})
    place = first["a"]["x"].data_ptr()
    tensor = torch.tensor([3.0, 4.0])
    second = staging.copy({"a": {"x": tensor, "lr": 0.2, "betas": (0.8, 0.88)}})
    tensor.zero_()
    assert second["a"]["x"].tolist() == [3, 4]
    assert second["a"]["x"].data_ptr() == place
    assert (second["a"]["lr"], second["a"]["betas"]) == (0.2, (0.8, 0.88))


@pytest.mark.parametrize(
    "changed",
    [
        {"x": torch.tensor([1.5, 2.5, 3.5])},
        {"x": torch.tensor([1.5, 2.5], dtype=torch.float64)},
        {"x": torch.tensor([1.5, 2.5]), "y": torch.tensor(3)},
        {"x": [torch.tensor(1.5)]},
        {},
    ],
)
def test_states_of_another_form_are_copied_exactly(changed: dict[str, torch.Tensor]) -> None:
    staging = Staging()
    staging.copy({"x": torch.tensor([1.0, 2.0], dtype=torch.bfloat16)})
    found = staging.copy(changed)
    assert str(found) == str(changed)


def test_values_that_are_no_tensors_are_copied_again_and_again() -> None:
    staging = Staging()
    for kind in (torch.float32, torch.float16):
        assert staging.copy({"kind": kind, "none": None})["kind"] == kind
