"""Copies the states of modules and optimizers to the memory of the host, so that training can go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.distributed._state_dict_utils import _copy_state_dict, _create_cpu_state_dict
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from collections.abc import Mapping


class Staging:
    """Memory for a copy, which is used again by the next one: new memory takes longer to fill than the copy."""

    def __init__(self) -> None:
        """Allocate nothing before the first copy."""
        self._memory: dict[str, Any] | None = None
        self._form: object = None
        """The form of the states that the memory has room for."""

    def copy(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of states, on the host. The copy before must no longer be in use."""
        form = _form(states)
        if self._memory is None or form != self._form:
            # Not both at once: they are as large as the model and its optimizer.
            self._memory = None
            self._memory = _create_cpu_state_dict(dict(states), pin_memory=torch.cuda.is_available())
            self._form = form
        return _copy_state_dict(dict(states), self._memory, type_check=False)


def _form(value: object) -> object:
    """Return what tells whether states fit into the memory of others: their names, and shapes and types of tensors."""
    if isinstance(value, DTensor):
        return value.shape, value.dtype, value.to_local().shape, value.placements
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype
    if isinstance(value, dict):
        return {name: _form(each) for name, each in value.items()}
    return [_form(each) for each in value] if isinstance(value, (list, tuple)) else None
