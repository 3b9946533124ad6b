"""What a checkpoint holds: collected from the objects of a training job, and restored into them."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import nn

from laneway.core.schema import wrap_state
from laneway.errors import CheckpointMismatchError
from laneway.loader import SavableLoader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch.optim import Optimizer

    from laneway.delivery.loader_state import ResumePoint


@runtime_checkable
class Stateful(Protocol):
    """An object with a state, such as a learning rate scheduler or a GradScaler."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:  # noqa: ANN401 - a Module returns what did not match
        """Restore a state."""


@dataclass(frozen=True)
class Objects:
    """The objects of a training job that are saved together."""

    model: nn.Module | None = None
    optimizers: tuple[Optimizer, ...] = ()
    loaders: Mapping[str, Stateful] = field(default_factory=dict)
    """Name of the part -> loader."""
    others: Mapping[str, Stateful] = field(default_factory=dict)
    """Name of the part -> a scheduler, a GradScaler, another module, ..."""

    @classmethod
    def of(
        cls,
        model: nn.Module | None,
        optimizer: Optimizer | Iterable[Optimizer] | None,
        loader: Stateful | Mapping[str, Stateful] | None,
        others: Mapping[str, Stateful | None],
    ) -> Objects:
        """Check the arguments of a user.

        Raises:
            TypeError: One of them has no state.
            ValueError: An optimizer without its model, or with parameters of another one; or two parts of one name.
        """
        if model is not None and not isinstance(model, nn.Module):
            message = (
                f"model must be a torch.nn.Module, not a {type(model).__name__}: pass the model itself, not its state"
            )
            raise TypeError(message)
        given = _optimizers(optimizer)
        if given and model is None:
            message = "optimizer needs model: the states of an optimizer are saved by the names of the parameters"
            raise ValueError(message)
        _check_parameters(model, given)
        loaders: dict[str, Stateful] = {}
        if isinstance(loader, Mapping):
            loaders = {f"loader/{name}": each for name, each in loader.items()}
        elif loader is not None:
            loaders = {"loader": loader}
        present = {name: each for name, each in others.items() if each is not None}
        twice = sorted({*loaders} & {*present})
        if twice:
            message = f"there is a loader and another object with the name {twice[0]!r}: give one of them another name"
            raise ValueError(message)
        for name, each in {**loaders, **present}.items():
            if not isinstance(each, Stateful):
                message = (
                    f"{name} must have state_dict() and load_state_dict(), and a "
                    f"{type(each).__name__} has not: pass the object itself, not its state"
                )
                raise TypeError(message)
        return cls(model, given, loaders, present)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules besides the model."""
        return {name: each for name, each in self.others.items() if isinstance(each, nn.Module)}

    @property
    def plain(self) -> dict[str, Stateful]:
        """The objects whose state is the same on all ranks, and small."""
        return {name: each for name, each in self.others.items() if not isinstance(each, nn.Module)}

    @property
    def sharded_parts(self) -> set[str]:
        """Names of the parts that are modules and optimizers."""
        return (
            {*self.modules}
            | ({"model"} if self.model is not None else set())
            | ({"optimizer"} if self.optimizers else set())
        )

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts, sorted."""
        return tuple(sorted({*self.loaders, *self.plain} | self.sharded_parts))

    def plain_states(self) -> dict[str, Any]:
        """Return the states of schedulers and the like, which the job has once."""
        return {name: each.state_dict() for name, each in self.plain.items()}

    def loader_states(self) -> dict[str, Any]:
        """Return the states of loaders that know the whole job, which has them once.

        All ranks must call it: a loader gathers the progress of all of them.
        """
        return {
            name: wrap_state(loader.gather_state(loader.ranks(), f"save {name}", None) or {})
            for name, loader in self.loaders.items()
            if isinstance(loader, SavableLoader)
        }

    def rank_states(self) -> dict[str, Any]:
        """Return what this rank has for itself: the states of other loaders."""
        loaders = self.loaders.items()
        return {name: each.state_dict() for name, each in loaders if not isinstance(each, SavableLoader)}

    def check_states(
        self, saved: Iterable[str], job: Mapping[str, Any], rank: Mapping[str, Any] | None, name: str
    ) -> Restoration:
        """Check what `plain_states`, `loader_states` and `rank_states` returned, as far as it is there.

        Args:
            saved: Names of the parts that the checkpoint holds.
            job: What the job has once.
            rank: What this rank has for itself; None: other ranks saved the checkpoint.
            name: The checkpoint, for errors.

        Returns:
            What restores it.

        Raises:
            StateFormatError: A state of a loader is damaged.
            CheckpointMismatchError: A state is of another loader; or a loader was saved by each rank for itself, and
                there are more or fewer ranks now.
        """
        checked: dict[str, ResumePoint] = {}
        others: list[tuple[Stateful, Any]] = []
        for part, each in {**self.plain, **self.loaders}.items():
            if part in job and isinstance(each, SavableLoader):
                checked[part] = each.checked_state(job[part])
            elif part in job:
                others.append((each, job[part]))
            elif rank is None and part in saved:
                message = (
                    f"{part} in {name} was saved by each rank for itself, so it can't be restored on another number of "
                    "ranks: a SavableLoader can"
                )
                raise CheckpointMismatchError(message)
            elif rank is not None and part in rank:
                others.append((each, rank[part]))
        return Restoration(tuple(self.plain.values()), others, checked)

    def check_parts(self, saved: Iterable[str], name: str) -> None:
        """Check that a checkpoint holds exactly what is to be restored.

        Raises:
            CheckpointMismatchError: A part is missing, or a part of the checkpoint would be left out.
        """
        missing, left_out = sorted({*self.parts} - {*saved}), sorted({*saved} - {*self.parts})
        if missing:
            message = f"{name} holds no {_listed(missing)}, but {_listed(sorted(saved))}"
        elif left_out:
            message = f"{name} also holds {_listed(left_out)}, which would not be restored"
        else:
            return
        message += ": pass the same objects as to save(), or strict=False to restore what both have"
        raise CheckpointMismatchError(message)


@dataclass(frozen=True)
class Restoration:
    """States that are about to be restored into other objects than modules and optimizers."""

    plain: Sequence[Stateful]
    """The objects whose state is the same on all ranks, and small."""
    others: Sequence[tuple[Stateful, Any]]
    """(object, state): it alone knows whether it accepts the state."""
    checked: Mapping[str, ResumePoint]
    """Name of a loader -> where it resumes; its state was checked."""

    def assign_others(self) -> None:
        """Restore the objects that may refuse their states."""
        for each, state in self.others:
            each.load_state_dict(state)

    def assign_checked(self) -> None:
        """Restore the others."""
        for each in self.checked.values():
            each.restore()

    def common_arguments(self) -> dict[str, str]:
        """Return what all ranks must have in common: the arguments of each loader, by its name and theirs."""
        return {
            f"{part}: {name}": value
            for part, point in self.checked.items()
            for name, value in point.common_arguments().items()
        }

    @contextmanager
    def undone_on_failure(self) -> Iterator[None]:
        """Give the plain objects their old states again if the body fails."""
        before = [(each, copy.deepcopy(each.state_dict())) for each in self.plain]
        try:
            yield
        except BaseException:
            for each, state in before:
                each.load_state_dict(state)
            raise


def _optimizers(given: object) -> tuple[Optimizer, ...]:
    """Return the optimizers that a user gave, which are not always of torch's class.

    Raises:
        TypeError: Something is no optimizer.
    """
    if given is None:
        return ()
    several = given if isinstance(given, Iterable) and not hasattr(given, "state_dict") else (given,)
    found = tuple(several)
    for each in found:
        if not hasattr(each, "state_dict") or not hasattr(each, "param_groups"):
            message = f"optimizer must be a torch.optim.Optimizer, or several of them, not {given!r:.200}"
            raise TypeError(message)
    return found


def _check_parameters(model: nn.Module | None, optimizers: Iterable[Optimizer]) -> None:
    """Check that optimizers have parameters of the model only: they are saved by their names there.

    Raises:
        ValueError: An optimizer has others.
    """
    known = set() if model is None else {id(each) for each in model.parameters()}
    for optimizer in optimizers:
        for index, group in enumerate(optimizer.param_groups):
            for number, parameter in enumerate(group["params"]):
                if id(parameter) not in known:
                    message = (
                        f"parameter {number} of group {index} of the {type(optimizer).__name__}, of shape "
                        f"{[*parameter.shape]}, is none of the model: create the optimizer with the parameters of the "
                        "model that you pass, after it was wrapped or sharded"
                    )
                    raise ValueError(message)


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"


def check_user_values(user: object) -> None:
    """Check what a user adds to a checkpoint.

    Raises:
        TypeError: It is no mapping.
    """
    if user is not None and not isinstance(user, Mapping):
        message = f"user must be a dict from names to values, not {user!r:.200}"
        raise TypeError(message)


def encode(values: Mapping[str, Any], what: str) -> bytes:
    """Return values as a file that `torch.load(weights_only=True)` reads.

    Args:
        values: Name -> value.
        what: What they are, for errors.

    Raises:
        TypeError: A value holds more than tensors, numbers, strings, and lists, tuples and dicts of them.
    """
    try:
        return _encoded(values)
    except Exception as error:
        for name, value in values.items():
            if (found := _unsavable(value, name)) is not None:
                place, culprit = found
                message = (
                    f"{place} in {what} can't be saved, it is a {type(culprit).__name__}: a checkpoint holds tensors, "
                    "numbers, strings, and lists, tuples and dicts of them"
                )
                raise TypeError(message) from error
        raise


def _unsavable(value: object, place: str) -> tuple[str, object] | None:
    """Return the place of the innermost value that can't be saved, and the value; None if all can."""
    try:
        _encoded(value)
    except Exception:  # noqa: BLE001 - whatever torch says about it
        parts: Iterable[tuple[object, object]] = ()
        if isinstance(value, dict):
            parts = value.items()
        elif isinstance(value, (list, tuple)):
            parts = enumerate(value)
        inner = (_unsavable(each, f"{place}[{key!r}]") for key, each in parts)
        return next(filter(None, inner), (place, value))
    return None


def _encoded(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    # A value that can't be loaded must not be found out when it is needed.
    decode(file.getvalue())
    return file.getvalue()


def decode(data: bytes) -> Any:  # noqa: ANN401 - what `encode` was given
    """Return the values that `encode` encoded."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
