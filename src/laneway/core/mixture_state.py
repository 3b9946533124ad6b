"""How states hold what a mixture has besides lanes and turns: how its cuts began, as plain JSON values without a dict.

`[names, files, starts, carried]`: the names of sources; those of their files and settings, in one string; for each
cut, how it began; and the groups that the current cut was left. A cut names its sources by their index in `names`, and
their files by the index in `files`; -1 is for a source that was removed since. What most cuts do without comes last, if
it is there: batches that were taken before the cut, and the rows of each source.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from laneway.core.consistency import MAX_COUNT, refuse, require
from laneway.core.differences import shorten
from laneway.core.mixing import MAX_SOURCES, exact_weights
from laneway.core.mixtures import NAME_LENGTH
from laneway.core.order import ORDER_VERSIONS
from laneway.core.progress import CutStart, Group, Rest, SourceStart

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from laneway.core.progress import Progress


def encode_mixture(mixture: Progress) -> list[Any]:
    """Return how the cuts of a mixture began, as JSON values in new lists."""
    all_sources = [source for start in reversed(mixture.starts) for source in start.sources]
    # Those that sources have now come first, in the order of the names.
    now = {source.name: source.files for source in reversed(all_sources) if source.name}
    names = {source.name: now[source.name] for source in all_sources if source.name}
    others = [files for source in all_sources for files in (source.files, *(rest.files for rest in source.rests))]
    files = [*names.values(), *dict.fromkeys(each for each in others if each not in {*names.values(), ""})]
    indices = {name: index for index, name in enumerate(names)} | {"": -1}
    # Several sources may have the same files and settings.
    of_files = {each: index for index, each in reversed([*enumerate(files)])} | {"": -1}
    has_short = any(group.num_rows for group in mixture.carried)
    return [
        [*names],
        "".join(files),
        [_encode_start(start, indices, of_files) for start in mixture.starts],
        [list(column) for column in zip(*mixture.carried, strict=True)][: 5 if has_short else 4],
    ]


def _encode_start(start: CutStart, indices: Mapping[str, int], of_files: Mapping[str, int]) -> list[Any]:
    sources = start.sources
    rests = [[index, *rest[:3], of_files[rest.files]] for index, source in enumerate(sources) for rest in source.rests]
    of_sources = [indices[source.name] for source in sources]
    files = [of_files[source.files] for source in sources]
    rows = [source.rows for source in sources]
    return [
        start.order_version,
        start.group_rows,
        start.num_carried,
        start.rows_before,
        None if of_sources == [*range(len(sources))] else of_sources,
        None if files == of_sources else files,
        [source.weight for source in sources],
        [source.next_epoch for source in sources],
        [list(column) for column in zip(*rests, strict=True)],
        *([start.batches_before] if start.batches_before else []),
        *([rows] if any(rows) else []),
    ]


def decode_mixture(encoded: object, progress: Progress) -> Progress:
    """Return the progress of a mixture with what `encode_mixture` returned.

    Args:
        encoded: The value of a state.
        progress: The lanes and turns in the same state.

    Raises:
        StateFormatError: The value is damaged, or contradicts the lanes.
    """
    if type(encoded) is not list or len(encoded) != 4 or type(encoded[1]) is not str:  # noqa: PLR2004 - its parts
        refuse(f"mixture is {shorten(encoded)}")
    names, starts, columns = _lists([encoded[0], *encoded[2:]], 3, "mixture")
    files = [encoded[1][i : i + NAME_LENGTH] for i in range(0, len(encoded[1]), NAME_LENGTH)]
    require(len(files) >= len(names), f"it has files of {len(files)} of {len(names)} sources")
    require(len({*map(str, names)}) == len(names) <= MAX_SOURCES, "its sources are not distinct")
    require(all(type(name) is str and name for name in names), f"its sources are {shorten(names)}")
    num_cuts = len(progress.earlier) + (progress.cut is not None)
    require(len(starts) == num_cuts, f"it has {len(starts)} starts of {num_cuts} cuts")
    decoded = tuple(_decode_start(start, names, files) for start in starts)
    current = decoded[-1] if decoded else CutStart(())
    require(all(source.name for source in current.sources), "a source of the current cut has no name")
    width = 5 if len(columns) == 5 else 4  # noqa: PLR2004 - with the rows of short groups
    carried = tuple(Group(*row) for row in _rows(columns, width, "groups", least=-1))
    require(len(carried) == current.num_carried, f"it has {len(carried)} groups, not {current.num_carried}")
    for group in carried:
        require(0 <= group.num_rows < max(current.group_rows, 1), f"a group has {group.num_rows} rows")
        if group.cut >= 0:
            require(group.cut < len(progress.earlier), f"a group is of cut {group.cut}")
            num_lanes = progress.earlier[group.cut].num_lanes
            require(0 <= group.lane < num_lanes, f"a group is of lane {group.lane} of {num_lanes}")
            require(group.row >= 0 and group.offset >= 0, f"a group is at {group.row}, {group.offset}")
    return replace(progress, starts=decoded, carried=carried)


def encode_tokens(mixture: Progress) -> list[int]:
    """Return the tokens of the sources of the current cut; nothing if they are not counted."""
    return [mixture.tokens[source.name] for source in mixture.starts[-1].sources] if mixture.tokens else []


def decode_tokens(encoded: list[int], mixture: Progress) -> Progress:
    """Return the progress of a mixture with what `encode_tokens` returned.

    Raises:
        StateFormatError: There are other sources.
    """
    if not encoded:
        return mixture
    names = [source.name for source in mixture.starts[-1].sources] if mixture.starts else []
    require(len(encoded) == len(names), f"it has tokens of {len(encoded)} of {len(names)} sources")
    return replace(mixture, tokens=dict(zip(names, encoded, strict=True)))


def _decode_start(encoded: object, names: list[str], files: list[str]) -> CutStart:
    # What most cuts do without comes last: a number of batches, and the rows of each source.
    first, last = (encoded[:9], encoded[9:]) if type(encoded) is list else (encoded, [])
    values = _lists(first, 9, "start of a cut", numbers=4)
    version, group_rows, num_carried, rows_before, of_sources, of_files, weights, epochs, columns = values
    batches_before, rows = 0, [0] * len(weights)
    if last and type(last[0]) is not list:
        batches_before = last.pop(0)
        is_count = type(batches_before) is int and 0 < abs(batches_before) < MAX_COUNT
        require(is_count, f"a cut began after {shorten(batches_before)} batches")
    if last and type(last[0]) is list:
        rows = last.pop(0)
    require(not last, f"start of a cut is {shorten(encoded)}")
    require(version in ORDER_VERSIONS, f"order_version of a cut is {version}")
    require(1 <= group_rows < MAX_COUNT, f"a group has {group_rows} rows")
    require(0 <= num_carried < MAX_COUNT, f"a cut has {num_carried} groups")
    require(0 <= rows_before < MAX_COUNT, f"a cut began after {rows_before} rows")
    of_sources = [*range(len(weights))] if of_sources is None else of_sources
    of_files = of_sources if of_files is None else of_files
    is_table = len(of_sources) == len(of_files) == len(weights) == len(epochs) == len(rows)
    require(is_table, f"weights of a cut are {shorten(weights)}")
    for index in of_sources:
        require(type(index) is int and -1 <= index < len(names), f"a source of a cut is {shorten(index)}")
    for index in of_files:
        require(type(index) is int and -1 <= index < len(files), f"files of a cut are {shorten(index)}")
    for weight in weights:
        is_weight = type(weight) in {int, float} and 0 <= weight < MAX_COUNT
        require(is_weight, f"a weight is {shorten(weight)}")
    try:
        exact_weights(weights)
    except ValueError as error:
        refuse(f"weights of a cut are {shorten(weights)}: {error}")
    _check_counts(epochs, "epochs of a cut")
    _check_counts(rows, "rows of a cut")
    rests: dict[int, list[Rest]] = {}
    for index, epoch, num_rows, of_epoch, of_rest in _rows(columns, 5, "rests", least=-1):
        require(min(index, epoch) >= 0 and of_rest < len(files), f"a rest is of source {index}, files {of_rest}")
        require(index < len(weights) and epoch < epochs[index], f"a rest is of epoch {epoch} of source {index}")
        require(num_rows > 0 and of_epoch in ORDER_VERSIONS, f"a rest has {num_rows} rows in order {of_epoch}")
        before = rests.setdefault(index, [])
        require(not before or before[-1].epoch < epoch, f"rests of source {index} are not in order")
        before.append(Rest(epoch, num_rows, of_epoch, files[of_rest] if of_rest >= 0 else ""))
    sources = tuple(
        SourceStart(
            names[name] if name >= 0 else "",
            weight,
            epoch,
            tuple(rests.get(index, ())),
            files[of_source] if of_source >= 0 else "",
            num_rows,
        )
        for index, (name, of_source, weight, epoch, num_rows) in enumerate(
            zip(of_sources, of_files, weights, epochs, rows, strict=True)
        )
    )
    named = [source.name for source in sources if source.name]
    require(len({*named}) == len(named), "a source occurs twice in a cut")
    return CutStart(sources, group_rows, num_carried, version, rows_before, batches_before)


def _lists(value: object, length: int, what: str, *, numbers: int = 0) -> list[Any]:
    """Return a list of `length` values: first numbers, and then lists, or None in place of the first two of these."""
    if type(value) is not list or len(value) != length:
        refuse(f"{what} is {shorten(value)}")
    types = [type(each) for each in value]
    may_be_none = types[numbers : numbers + 2] if numbers else []
    is_list = {*types[numbers + len(may_be_none) :]} == {list}
    is_right = {*types[:numbers]} <= {int} and {*may_be_none} <= {list, type(None)} and is_list
    require(is_right, f"{what} is {shorten(value)}")
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
