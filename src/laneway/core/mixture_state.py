"""How states hold what a mixture has besides lanes and turns: how its cuts began, as plain JSON values without a dict.

`[names, starts, carried]`: the names of sources; for each cut, how it began; and the groups that the current cut was
left. A cut names its sources by their index in `names`, -1 for one that was removed since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from laneway.core.consistency import MAX_COUNT, refuse, require
from laneway.core.differences import shorten
from laneway.core.endless import Rest
from laneway.core.mixing import MAX_SOURCES
from laneway.core.mixtures import CutStart, Group, MixtureProgress, SourceStart
from laneway.core.order import ORDER_VERSIONS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from laneway.core.progress import Progress


def encode_mixture(mixture: MixtureProgress) -> list[Any]:
    """Return how the cuts of a mixture began, as JSON values in new lists."""
    found = {source.name: None for start in reversed(mixture.starts) for source in start.sources if source.name}
    indices = {name: index for index, name in enumerate(found)} | {"": -1}
    return [
        [*found],
        [_encode_start(start, indices) for start in mixture.starts],
        [list(column) for column in zip(*mixture.carried, strict=True)],
    ]


def _encode_start(start: CutStart, indices: dict[str, int]) -> list[Any]:
    sources = start.sources
    rests = [[index, *rest] for index, source in enumerate(sources) for rest in source.rests]
    of_sources = [indices[source.name] for source in sources]
    return [
        start.order_version,
        start.group_rows,
        start.num_carried,
        None if of_sources == [*range(len(sources))] else of_sources,
        [source.weight for source in sources],
        [source.next_epoch for source in sources],
        [list(column) for column in zip(*rests, strict=True)],
    ]


def decode_mixture(encoded: object, progress: Progress) -> MixtureProgress:
    """Return the progress of a mixture from what `encode_mixture` returned.

    Args:
        encoded: The value of a state.
        progress: The lanes and turns in the same state.

    Raises:
        StateFormatError: The value is damaged, or contradicts the lanes.
    """
    names, starts, columns = _lists(encoded, 3, "mixture")
    require(len({*map(str, names)}) == len(names) <= MAX_SOURCES, "its sources are not distinct")
    require(all(type(name) is str and name for name in names), f"its sources are {shorten(names)}")
    num_cuts = len(progress.earlier) + 1
    require(len(starts) == num_cuts, f"it has {len(starts)} starts of {num_cuts} cuts")
    decoded = tuple(_decode_start(start, names) for start in starts)
    require(all(source.name for source in decoded[-1].sources), "a source of the current cut has no name")
    carried = tuple(Group(*row) for row in _rows(columns, 4, "groups", least=-1))
    require(len(carried) == decoded[-1].num_carried, f"it has {len(carried)} groups, not {decoded[-1].num_carried}")
    for group in carried:
        if group.cut >= 0:
            require(group.cut < len(progress.earlier), f"a group is of cut {group.cut}")
            num_lanes = progress.earlier[group.cut].num_lanes
            require(0 <= group.lane < num_lanes, f"a group is of lane {group.lane} of {num_lanes}")
            require(group.row >= 0 and group.offset >= 0, f"a group is at {group.row}, {group.offset}")
    return MixtureProgress(progress, decoded, carried)


def _decode_start(encoded: object, names: list[str]) -> CutStart:
    values = _lists(encoded, 7, "start of a cut", numbers=3)
    (version, group_rows, num_carried), (of_sources, weights, epochs, columns) = values[:3], values[3:]
    require(version in ORDER_VERSIONS, f"order_version of a cut is {version}")
    require(1 <= group_rows < MAX_COUNT, f"a group has {group_rows} rows")
    require(0 <= num_carried < MAX_COUNT, f"a cut has {num_carried} groups")
    of_sources = [*range(len(weights))] if of_sources is None else of_sources
    require(len(of_sources) == len(weights) == len(epochs), f"weights of a cut are {shorten(weights)}")
    for index in of_sources:
        require(type(index) is int and -1 <= index < len(names), f"a source of a cut is {shorten(index)}")
    for weight in weights:
        is_weight = type(weight) in {int, float} and 0 <= weight < MAX_COUNT
        require(is_weight, f"a weight is {shorten(weight)}")
    require(any(weights), "no source of a cut has a weight")
    _check_counts(epochs, "epochs of a cut")
    rests: dict[int, list[Rest]] = {}
    for index, epoch, num_rows, of_epoch in _rows(columns, 4, "rests"):
        require(index < len(weights) and epoch < epochs[index], f"a rest is of epoch {epoch} of source {index}")
        require(num_rows > 0 and of_epoch in ORDER_VERSIONS, f"a rest has {num_rows} rows in order {of_epoch}")
        before = rests.setdefault(index, [])
        require(not before or before[-1].epoch < epoch, f"rests of source {index} are not in order")
        before.append(Rest(epoch, num_rows, of_epoch))
    sources = tuple(
        SourceStart(names[name] if name >= 0 else "", weight, epoch, tuple(rests.get(index, ())))
        for index, (name, weight, epoch) in enumerate(zip(of_sources, weights, epochs, strict=True))
    )
    named = [source.name for source in sources if source.name]
    require(len({*named}) == len(named), "a source occurs twice in a cut")
    return CutStart(sources, group_rows, num_carried, version)


def _lists(value: object, length: int, what: str, *, numbers: int = 0) -> list[Any]:
    """Return a list of `length` values: first numbers, and then lists, or None in place of the first of these."""
    if type(value) is not list or len(value) != length:
        refuse(f"{what} is {shorten(value)}")
    types = [type(each) for each in value]
    may_be_none = types[numbers] is type(None) and numbers > 0
    is_list = {*types[numbers + may_be_none :]} == {list}
    require({*types[:numbers]} <= {int} and is_list, f"{what} is {shorten(value)}")
    return value


def _rows(columns: list[Any], width: int, what: str, *, least: int = 0) -> Iterable[list[int]]:
    """Return the rows of a table of ints that is saved as columns, or as nothing if it has no rows."""
    if not columns:
        return []
    is_table = len(columns) == width and all(type(column) is list for column in columns)
    require(is_table and len({*map(len, columns)}) == 1, f"{what} are {shorten(columns)}")
    for column in columns:
        _check_counts(column, what, least=least)
    return [[*row] for row in zip(*columns, strict=True)]


def _check_counts(numbers: list[Any], what: str, *, least: int = 0) -> None:
    is_right = {*map(type, numbers)} <= {int} and all(least <= number < MAX_COUNT for number in numbers)
    require(is_right, f"{what} are {shorten(numbers)}")
