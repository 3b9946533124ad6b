"""The states of modules and optimizers, whose tensors torch.distributed.checkpoint shares out to the ranks."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from laneway.checkpoint.groups import GROUPS, OPTIMIZER, PARAMETERS, STATE, fit_groups, group_paths
from laneway.checkpoint.torch_calls import flat_states
from laneway.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import nn
    from torch.distributed.checkpoint.metadata import Metadata
    from torch.optim import Optimizer

    from laneway.checkpoint.content import Objects
    from laneway.checkpoint.groups import Group
    from laneway.checkpoint.torch_files import TorchFilesReader

    Path = tuple[str | int, ...]

MAX_LISTED = 10
"""Most differences that an error lists."""
_LOADED_BY_NAME = StateDictOptions(strict=False)
"""A parameter for which the optimizer had no state when it was saved, has none then."""


def states_of(objects: Objects) -> dict[str, Any]:
    """Return the states of modules and optimizers, whose tensors are those of the job: a copy is up to the caller.

    All ranks must call it. Nothing changes: an optimizer has no state of parameters that it has not updated.
    """
    found: dict[str, Any] = {}
    if objects.model is not None:
        found["model"] = get_model_state_dict(objects.model)
        if objects.optimizers:
            with _left_alone(objects.optimizers):
                found[OPTIMIZER] = _optimizer_states(objects.model, objects.optimizers)
    return found | {name: get_model_state_dict(module) for name, module in objects.modules.items()}


def _optimizer_states(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    found: dict[str, Any] = get_optimizer_state_dict(model, optimizers)
    found[STATE] = {name: state for name, state in found[STATE].items() if state}
    return found


@contextmanager
def _left_alone(optimizers: Sequence[Optimizer]) -> Iterator[None]:
    """Keep torch from creating the states of an optimizer that has none, by a step that counts in its later ones."""
    added: list[tuple[Optimizer, torch.Tensor, dict[str, Any]]] = [
        (optimizer, parameter, {})
        for optimizer in optimizers
        if not optimizer.state
        for parameter in _parameters(optimizer)
    ]
    for optimizer, parameter, empty in added:
        optimizer.state[parameter] = empty
    try:
        yield
    finally:
        for optimizer, parameter, empty in added:
            if optimizer.state.get(parameter) is empty:
                del optimizer.state[parameter]


def _parameters(optimizer: Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group[PARAMETERS]


class Target:
    """The states of modules and optimizers as memory for those of a checkpoint. They change when they are read."""

    def __init__(self, objects: Objects, states: dict[str, Any], groups: list[Group]) -> None:
        self._objects, self._groups = objects, groups
        self.states = states
        """Name of a part -> its state."""

    def assign(self) -> None:
        """Let the objects know what was read into their tensors. All ranks must call it."""
        objects, states = self._objects, self.states
        if objects.model is not None and "model" in states:
            set_model_state_dict(objects.model, states["model"])
        if objects.model is not None and OPTIMIZER in states:
            # Torch takes a state without names for one with numbers instead, which it does not share out.
            named: dict[str, Any] = {STATE: {"": {}, **states[OPTIMIZER][STATE]}, GROUPS: self._groups}
            with _left_alone(objects.optimizers):
                set_optimizer_state_dict(objects.model, objects.optimizers, named, options=_LOADED_BY_NAME)
        for name, module in objects.modules.items():
            if name in states:
                set_model_state_dict(module, states[name])


class Differences(NamedTuple):
    """How the states of this job and those of a checkpoint differ."""

    lacking: list[str]
    """What the checkpoint lacks, and tensors of other sizes."""
    left_out: list[str]
    """What it holds, and this job has no place for."""


@contextmanager
def target_of(objects: Objects, parts: Iterable[str], reader: TorchFilesReader) -> Iterator[tuple[Target, Differences]]:
    """Yield room for what a checkpoint holds of modules and optimizers. All ranks must enter it.

    If the body fails, optimizers have the states that they had before, as far as these were not overwritten.

    Args:
        objects: The objects of the job.
        parts: Names of the parts of the checkpoint; those that the job has are restored.
        reader: The checkpoint.

    Raises:
        CheckpointError: The checkpoint is damaged.
        DataFileError: It can't be read.
    """
    wanted = objects.sharded_parts & {*parts}
    saved = reader.metadata
    paths = {name: path for name, path in (saved.planner_data or {}).items() if path[0] in wanted}
    states = {name: state for name, state in states_of(objects).items() if name in wanted}
    groups: list[Group] = states.get(OPTIMIZER, {}).pop(GROUPS, [])
    own = {name for group in groups for name in group[PARAMETERS]}
    has_room = {name for name, path in paths.items() if path[:2] == (OPTIMIZER, STATE) and path[2] in own} <= _names(
        states
    )
    with _set_aside(() if has_room else objects.optimizers):
        if objects.model is not None and not has_room:
            # Torch creates the states of all parameters.
            states[OPTIMIZER] = {STATE: _optimizer_states(objects.model, objects.optimizers)[STATE]}
        lacking = _fitted(states, saved, paths)
        left_out = {*paths} - _names(states) - {*group_paths(saved)}
        if OPTIMIZER in states:
            fitted = fit_groups(groups, reader)
            groups, lacking, left_out = fitted.groups, lacking + fitted.lacking, left_out | fitted.left_out
        yield Target(objects, states, groups), Differences(lacking, sorted(left_out))


def _names(states: dict[str, Any]) -> set[str]:
    """Return the names under which torch saves values."""
    return {*flat_states(states)[0]}


@contextmanager
def _set_aside(optimizers: Sequence[Optimizer]) -> Iterator[None]:
    """Take away the states of optimizers, and the gradients, without which torch creates states; undo it on failure."""
    states = [dict(each.state) for each in optimizers]
    gradients = [(parameter, parameter.grad) for each in optimizers for parameter in _parameters(each)]
    for optimizer in optimizers:
        optimizer.state.clear()
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    except BaseException:
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.state.clear()
            optimizer.state.update(state)
        raise
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _fitted(states: dict[str, Any], saved: Metadata, saved_paths: Mapping[str, Path]) -> list[str]:
    """Leave out of states those of an optimizer for parameters that had none, and return what else is lacking."""
    lacking: list[str] = []
    with_state = {path[2] for path in saved_paths.values() if path[:2] == (OPTIMIZER, STATE)}
    values, paths = flat_states(states)
    for name, value in values.items():
        metadata, path = saved.state_dict_metadata.get(name), paths[name]
        if metadata is None and path[:2] == (OPTIMIZER, STATE) and path[2] not in with_state:
            states[OPTIMIZER][STATE].pop(path[2], None)
        elif metadata is None:
            lacking.append(f"holds no {name}")
        elif (
            isinstance(metadata, TensorStorageMetadata)
            and isinstance(value, torch.Tensor)
            and metadata.size != value.size()
        ):
            lacking.append(f"holds {name} of shape {[*metadata.size]}, now {[*value.size()]}")
    return lacking


def check_differences(name: str, all_ranks: Sequence[Differences], *, strict: bool) -> None:
    """Check that a checkpoint and the modules and optimizers fit.

    Args:
        name: The checkpoint.
        all_ranks: For each rank, how they differ.
        strict: Whether the checkpoint may hold nothing else.

    Raises:
        CheckpointMismatchError: They do not.
    """
    lacking = next((each.lacking for each in all_ranks if each.lacking), [])
    left_out = sorted(set.intersection(*({*each.left_out} for each in all_ranks))) if strict else []
    lines = lacking + [f"holds {each}, which would not be restored" for each in left_out]
    if lines:
        more = [f"differs {len(lines) - MAX_LISTED:,} more times"] if len(lines) > MAX_LISTED else []
        message = "\n  it ".join([f"{name} is of another model or optimizer:", *lines[:MAX_LISTED], *more])
        message += "\ncreate both as when it was saved" + ("" if lacking else ", or pass strict=False")
        raise CheckpointMismatchError(message)
