"""The settings of optimizers, by group of parameters: found again by the names of the parameters, on any rank."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from laneway.checkpoint.torch_calls import load_states, nested_states

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch.distributed.checkpoint.metadata import Metadata

    from laneway.checkpoint.torch_files import TorchFilesReader

    Group = dict[str, Any]
    Path = tuple[str | int, ...]

OPTIMIZER, STATE, GROUPS, PARAMETERS = "optimizer", "state", "param_groups", "params"


# -- Saving -----------------------------------------------------------------------------------------------------------


class OwnGroups(NamedTuple):
    """What a rank says of its groups, so that those of other parameters get other numbers."""

    digest: bytes
    """Of the names of the parameters."""
    num_groups: int
    """Number of groups."""


def own_groups(states: Mapping[str, Any]) -> OwnGroups:
    """Return what this rank says of the groups in its states."""
    groups: Sequence[Group] = states.get(OPTIMIZER, {}).get(GROUPS, ())
    names = json.dumps([group[PARAMETERS] for group in groups])
    return OwnGroups(hashlib.blake2b(names.encode(), digest_size=16).digest(), len(groups))


def first_numbers(ranks: Iterable[OwnGroups]) -> dict[OwnGroups, int]:
    """Return from which number on the groups of each rank are counted: ranks with the same parameters share them."""
    found: dict[OwnGroups, int] = {}
    total = 0
    for each in ranks:
        if each not in found:
            found[each] = total
            total += each.num_groups
    return found


def count_from(states: Mapping[str, Any], first: int) -> None:
    """Count the groups in states from a number on: torch.distributed.checkpoint names settings by these numbers."""
    if first:
        # Of an empty dict, nothing is saved.
        states[OPTIMIZER][GROUPS] = [*({} for _ in range(first)), *states[OPTIMIZER][GROUPS]]


# -- Restoring --------------------------------------------------------------------------------------------------------


class FittedGroups(NamedTuple):
    """The groups of this job with the settings in a checkpoint."""

    groups: list[Group]
    """The groups; a setting that the checkpoint lacks is as it was."""
    lacking: list[str]
    """What the checkpoint lacks, or does not tell."""
    left_out: set[str]
    """Names of what it holds, and this job has no place for."""


def group_paths(saved: Metadata) -> dict[str, Path]:
    """Return the settings in a checkpoint: name -> path, which begins with `OPTIMIZER, GROUPS`, and the group."""
    paths: Mapping[str, Path] = saved.planner_data or {}
    return {name: path for name, path in paths.items() if path[:2] == (OPTIMIZER, GROUPS)}


def fit_groups(own: Sequence[Group], reader: TorchFilesReader) -> FittedGroups:
    """Read the settings in a checkpoint, and give each group those that its parameters had.

    Args:
        own: The groups of this job, with the names of their parameters.
        reader: The checkpoint.

    Raises:
        CheckpointError: It is damaged.
        DataFileError: It can't be read.
    """
    paths = group_paths(reader.metadata)
    saved = _read(reader, paths)
    number_of = {name: number for number, group in enumerate(saved) for name in group.get(PARAMETERS, ())}
    found = FittedGroups([], [], {*paths})
    takers: dict[int, list[Group]] = {}
    for group in own:
        numbers = sorted({number_of[name] for name in group[PARAMETERS] if name in number_of})
        if group[PARAMETERS] and not numbers:
            found.lacking.append(f"holds no settings of the optimizer for {group[PARAMETERS][0]}")
        for number in numbers:
            takers.setdefault(number, []).append(group)
        found.groups.append({name: _setting(group, name, [saved[each] for each in numbers], found) for name in group})
        found.left_out.difference_update(
            name for name, path in paths.items() if path[2] in numbers and path[3] in group
        )
    for number, groups in takers.items():
        for name in sorted(saved[number].keys() - {PARAMETERS}):
            before = f"holds one group of parameters of the optimizer, now in groups with the {name}"
            _check_alike([each[name] for each in groups if name in each], before, found)
    return found


def _read(reader: TorchFilesReader, paths: Mapping[str, Path]) -> list[Group]:
    values: dict[str, Any] = {}
    for name in paths:
        metadata = reader.metadata.state_dict_metadata[name]
        values[name] = None
        if isinstance(metadata, TensorStorageMetadata):
            values[name] = torch.empty(metadata.size, dtype=metadata.properties.dtype)
    load_states(reader, values, None)
    found: list[Group] = nested_states(values, dict(paths)).get(OPTIMIZER, {}).get(GROUPS, [])
    return found


def _setting(group: Group, name: str, saved: Sequence[Group], found: FittedGroups) -> Any:  # noqa: ANN401 - any setting
    """Return a setting of a group as it was saved."""
    values = [each[name] for each in saved if name in each]
    if name == PARAMETERS or not values:
        return group[name]
    _check_alike(values, f"holds parameters, now in one group of the optimizer, with the {name}", found)
    return values[0]


def _check_alike(values: Sequence[Any], what: str, found: FittedGroups) -> None:
    """Note that a setting which is one in the checkpoint, or in this job, has several values on the other side."""
    different = next((each for each in values if not _are_equal(each, values[0])), None)
    if different is not None:
        found.lacking.append(f"{what} {values[0]} and {different}")


def _are_equal(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return torch.equal(first, second)
    return bool(first == second)
