"""Finds the states of laneway in whatever they were saved in: a checkpoint of a trainer, or a list of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from laneway.core.apart import is_apart, states_of_ranks
from laneway.core.differences import shorten
from laneway.core.merge import differing_fields, merge_ranks, refuse_to_merge
from laneway.core.mixture_progress import progress_in
from laneway.core.progress import added_tokens, current_cut
from laneway.core.schema import FORMAT, Role, names_of, parse_state
from laneway.errors import StateFormatError
from laneway.mixture import Mixture
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from laneway.core.progress import LanePosition, Progress, Tokens
    from laneway.core.schema import SavedState

_MAX_DEPTH = 64


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What the states of one step tell."""

    index: int
    """Its index among the checkpoints that were given."""
    states: list[SavedState]
    """The state of the whole job, or those of some ranks or workers."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """The fields of the first state; others of the same step have the same identity."""
        return self.states[0].fields

    @property
    def epoch(self) -> int:
        """The epoch; of a mixture, how many times it has ended."""
        return int(self.fields["epoch"])


class FoundState(NamedTuple):
    """A state, and where it was found."""

    key: str
    """The keys and indices that lead to it, with slashes between; without those that laneway adds itself."""
    state: dict[str, Any]
    """The state."""


class FoundStep(NamedTuple):
    """The states of one step."""

    states: list[SavedState]
    """That of the job, or those of some ranks or workers."""
    ahead: list[SavedState]
    """Those of ranks that are in a later epoch, or in a later cut of a mixture."""


def find_states(value: object) -> list[FoundState]:
    """Return all states of laneway in a value, such as a checkpoint of a trainer, in its order.

    Args:
        value: Any nesting of dicts, lists and tuples.
    """
    return [FoundState("/".join(keys), state) for keys, state in _states_in(value, ())]


def _states_in(value: object, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    if len(keys) > _MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        if value.get("format") == FORMAT:
            yield keys, dict(value)
            return
        for key, each in value.items():
            # `wrap_state` puts a list of one state under this key.
            is_wrapped = key == "laneway" and isinstance(each, Sequence) and len(each) == 1
            yield from _states_in(each[0], keys) if is_wrapped else _states_in(each, (*keys, str(key)))
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        for index, each in enumerate(value):
            yield from _states_in(each, (*keys, str(index)))


def states_of_step(value: object, name: str, key: str | None = None) -> list[SavedState]:
    """Return the states of one step that a value holds; see `find_step`."""
    return find_step(value, name, key).states


def find_step(value: object, name: str, key: str | None = None) -> FoundStep:
    """Return the states of one step that a value holds: that of the job, or those of some ranks or workers.

    Args:
        value: A state, a list of states of ranks, or anything that they are nested in.
        name: What the value is, for errors.
        key: Which of several loaders: a part of the keys that lead to its states; None: there is only one.

    Raises:
        StateFormatError: There is no state, or one of them is damaged.
        CheckpointMismatchError: They are of different loaders, or of different steps.
    """
    found = find_states(value)
    if key is not None:
        found = [each for each in found if key in each.key.split("/") or each.key == key]
    if not found:
        with_key = "" if key is None else f" under the key {key!r}"
        message = (
            f"{name} holds no state of laneway{with_key} (it is {shorten(value)}): pass what state_dict(), "
            "save_state_rank() or save_state_global() of a loader or dataset returned, or what that was saved in"
        )
        raise StateFormatError(message)
    saved: list[SavedState] = []
    keys: list[str] = []
    try:
        for one in found:
            parts = states_of_ranks(one.state) if is_apart(one.state) else [one.state]
            saved += map(parse_state, parts)
            keys += [one.key] * len(parts)
    except StateFormatError as error:
        message = f"{name}: {error}"
        raise StateFormatError(message) from None
    _check_loaders(keys, saved, name)
    are_apart = any(is_apart(one.state) for one in found)
    begun = [(each.fields["epoch"], _rows_before_cut(each) if are_apart else 0) for each in saved]
    first = min(begun)
    behind = [each for each, own in zip(saved, begun, strict=True) if own == first]
    ahead = [each for each, own in zip(saved, begun, strict=True) if own > first]
    return FoundStep(_distinct(behind, name), ahead)


def _rows_before_cut(saved: SavedState) -> int:
    """Return the rows of a mixture before the current cut; 0 for a dataset."""
    starts = progress_in(saved).starts
    return starts[-1].rows_before if starts else 0


def _check_loaders(keys: Sequence[str], saved: Sequence[SavedState], name: str) -> None:
    """Check that states which were found together are of one loader.

    Raises:
        StateFormatError: They are not.
    """
    names = names_of(Role.IDENTITY)
    identities = {tuple(state.fields[each] for each in names): key for state, key in zip(saved, keys, strict=True)}
    if len(identities) > 1:
        message = (
            f"{name} holds the states of {counted(len(identities), 'loader')}, under {', '.join(identities.values())}: "
            "say which one with key="
        )
        raise StateFormatError(message)


def _distinct(saved: Sequence[SavedState], name: str) -> list[SavedState]:
    """Return the states, of which the whole job's is given once, checked to be of one job and step."""
    fields = [each.fields for each in saved]
    scopes = {each["scope"] for each in fields}
    if scopes == {"global"}:
        if any(each != fields[0] for each in fields):
            message = f"{name} holds {counted(len(saved), 'state')} of the whole job, which differ: pass one at a time"
            raise StateFormatError(message)
        return [saved[0]]
    of_job = [*names_of(Role.IDENTITY, Role.JOB)]
    refuse_to_merge(differing_fields(fields, of_job))
    if scopes == {"rank"} and len(saved) == fields[0]["world_size"]:
        return [parse_state(merge_ranks(saved, same_step=False))]
    return [*saved]


def progress_of(saved: Sequence[SavedState]) -> Progress:
    """Return the progress in states of the same step, with the positions of all lanes that are in one of them."""
    # A StatefulDataLoader saves the state of a worker twice.
    parts = [*{state.place: progress_in(state) for state in saved}.values()]
    first = parts[0]
    if first.cut is None:
        return first
    positions: dict[int, LanePosition] = {}
    tokens: Tokens = dict.fromkeys(first.tokens, 0)
    for part in parts:
        positions.update(current_cut(part).positions)
        tokens = added_tokens(tokens, part.tokens) if tokens and part.tokens else {}
    return replace(first, cut=replace(first.cut, positions=positions), tokens=tokens)


def check_kind(source: object, fields: Mapping[str, Any], name: str) -> None:
    """Check that a source is a `Mixture` if a state is of a mixture, and else not.

    Args:
        source: The source that a user gives; None: none.
        fields: The fields of the state.
        name: What it is, for errors.

    Raises:
        ValueError: It is not, or there is no source for the state of a mixture.
    """
    names = ", ".join(fields["mixture"][0]) or "datasets" if fields["mixture"] else None
    if isinstance(source, Mixture) and names is None:
        message = f"{name} is of a single dataset, not of a mixture: pass the dataset as source"
        raise ValueError(message)
    if names is not None and not isinstance(source, Mixture):
        message = (
            f"{name} is of a mixture of {names}: pass the Mixture as source, with all sources that it had; on the "
            "command line, --source NAME=PATH for each"
        )
        raise ValueError(message)
