"""The messages of mismatches: how a saved state differs from the current run, with both values and a remedy."""

from __future__ import annotations

import reprlib
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any

from laneway.core.saved_files import (
    FILES_PER_PART,
    FileFacts,
    decode_files,
    decode_parts,
    names_files,
    part_digests,
    part_starts,
)
from laneway.wording import counted, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from laneway.core.files import FileTable
    from laneway.core.saved_files import SavedParts
    from laneway.core.turns import WorkerPlace

_MAX_NAMED = 3
_MAX_VALUE_LENGTH = 40
_MAX_TEXT_LENGTH = 400
_REPR = reprlib.Repr()
"""Doesn't write out a large value only to truncate it."""
_REPR.maxlevel, _REPR.maxlist, _REPR.maxstring, _REPR.maxother = 3, 20, 80, 80
_MAX_PATH_LENGTH = 300
_DEFAULTS = {"remainder": 'None: "keep" on one rank, "pad" on several', "table": "None: files without a version"}
"""Setting -> what its default means."""
_REMEDIES = {
    "table": "open the saved version to resume, such as with delta://path@version or hf://datasets/org/name@commit"
}
"""Setting -> how to give it the saved value, where that is not an argument of the same name."""
_OTHER_CONTENTS = "the same files had other row groups, or other columns, when this state was saved"


def identity_differences(names: Iterable[str], saved: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Return a line for each of these fields that differs between a saved state and the current run."""
    found = []
    for name in names:
        values = saved[name], present[name]
        if values[0] != values[1]:
            was, now = (_shown(name, value) for value in values)
            note = _DEFAULTS.get(name) if None in values else _REMEDIES.get(name)
            found.append(f"{name}: saved {was}, this run has {now}" + (f" ({note})" if note else ""))
    return found


def _shown(name: str, value: object) -> str:
    """Return a setting as a message shows it: bytes with a unit, a text up to 400 characters."""
    if name.endswith("_bytes") and type(value) is int:
        return size(value)
    if isinstance(value, str):
        return repr(value) if len(value) <= _MAX_TEXT_LENGTH else f"{value[:_MAX_TEXT_LENGTH]!r}..."
    return shorten(value)


def file_differences(encoded: str, files: FileTable, saved: FileTable | None = None) -> str:
    """Return the line that lists how the data files differ from those of a saved state.

    Args:
        encoded: `FileTable.encoded` of the saved state.
        files: The current data files.
        saved: The data files of the state, if they are known from elsewhere: a state of many files doesn't name them.

    Raises:
        StateFormatError: `encoded` is damaged.
    """
    if saved is None and not names_files(encoded):
        return f"files: {_part_differences(decode_parts(encoded), files)}"
    before = decode_files(encoded) if saved is None else _facts_of(saved)
    return saved_file_differences(before, _facts_of(files))


def saved_file_differences(before: Mapping[str, FileFacts], now: Mapping[str, FileFacts]) -> str:
    """Return the line that lists how data files differ, given path -> facts of both."""
    lines = _changes(before, now)
    shown = list(islice(lines, _MAX_NAMED))
    num_more = sum(1 for _ in lines)
    if not shown:
        shown = [_OTHER_CONTENTS]
    if num_more:
        shown.append(f"and {counted(num_more, 'more difference')}")
    return "files: " + "; ".join(shown)


def _facts_of(files: FileTable) -> dict[str, FileFacts]:
    columns = (files.paths, map(FileFacts, files.sizes.tolist(), files.rows.tolist(), files.digests))
    return dict(zip(*columns, strict=True))


def _changes(saved: Mapping[str, FileFacts], present: Mapping[str, FileFacts]) -> Iterator[str]:
    """Yield a line for each file that changed, is gone, has another name, or is new."""
    for path in present:
        if path in saved and saved[path] != present[path]:
            yield f"{_name(path)} {_change(path, saved[path], present[path])}"
    # Several files may be equal: each of them is the new name of one.
    new_names: dict[FileFacts, deque[str]] = {}
    for path, facts in present.items():
        if path not in saved:
            new_names.setdefault(facts, deque()).append(path)
    renamed = set()
    for path, facts in saved.items():
        if path in present:
            continue
        if names := new_names.get(facts):
            renamed.add(names[0])
            yield f"{_name(path)} is now {_name(names.popleft())}"
        else:
            yield f"{_name(path)} is gone"
    for path in present:
        if path not in saved and path not in renamed:
            yield f"{_name(path)} is new"


def _part_differences(saved: SavedParts, files: FileTable) -> str:
    """Return in which ranges of paths the files differ."""
    starts = part_starts(files.paths)
    digests = part_digests(files.columns, starts)
    known = set(saved.digests)
    changed = [index for index, each in enumerate(digests) if each not in known]
    num_gone = len(known.difference(digests))
    found = []
    if (saved.num_files, saved.num_rows) != (files.num_files, files.num_rows):
        found.append(
            f"saved {counted(saved.num_files, 'file')} with {counted(saved.num_rows, 'row')}, this run has "
            f"{counted(files.num_files, 'file')} with {counted(files.num_rows, 'row')}"
        )
    ends = [*starts[1:].tolist(), files.num_files]
    for index in changed[:_MAX_NAMED]:
        first, last = files.paths[int(starts[index])], files.paths[ends[index] - 1]
        found.append(f"some of the {ends[index] - int(starts[index]):,} files {_name(first)} to {_name(last)} differ")
    if len(changed) > _MAX_NAMED:
        found.append(f"and {len(changed) - _MAX_NAMED:,} more of {len(digests):,} such ranges")
    elif num_gone and not changed:
        found.append(f"about {num_gone * FILES_PER_PART:,} files in a row are gone")
    return "; ".join(found) or _OTHER_CONTENTS


def _name(path: str) -> str:
    """Return a path for a message, the middle of a long one left out."""
    half = _MAX_PATH_LENGTH // 2
    return path if len(path) <= _MAX_PATH_LENGTH else f"{path[:half]}...{path[-half:]}"


def _change(path: str, saved: FileFacts, present: FileFacts) -> str:
    if saved.rows != present.rows:
        return f"had {counted(saved.rows, 'row')}, now {present.rows:,}"
    if saved.size != present.size:
        return f"had {counted(saved.size, 'byte')}, now {present.size:,}"
    # Its blocks then are other ones.
    may_be = ", or indexed_gzip is installed on one side only" if path.endswith(".gz") else ""
    return f"was rewritten with the same size ({saved.size:,} bytes){may_be}"


def place_differences(saved: WorkerPlace, present: WorkerPlace) -> list[str]:
    """Return a line for each difference between the worker that saved a state and the one that loads it."""
    facts = {
        "rank": (saved.rank, present.rank, "each rank resumes from its own state"),
        "world_size": (saved.world_size, present.world_size, "the state of one rank can't be spread over others"),
        "num_workers": (
            saved.num_workers,
            present.num_workers,
            "a StatefulDataLoader saves one state per worker, and can only restore the same number of workers: "
            f"give it num_workers={saved.num_workers}" + (", or 0 if it had none" if saved.num_workers == 1 else ""),
        ),
        "worker": (saved.worker, present.worker, "each DataLoader worker resumes from its own state"),
    }
    return [f"{name}: saved {old}, this is {new} ({why})" for name, (old, new, why) in facts.items() if old != new]


def mismatch_message(identity_lines: Sequence[str], place_lines: Sequence[str], *, is_of_rank: bool) -> str:
    """Return the message of a CheckpointMismatchError: all differences, and remedies.

    Args:
        identity_lines: Differences in files and settings, each `name: ...`.
        place_lines: Differences between the worker that saved the state and the one that loads it.
        is_of_rank: Whether the state is that of a single rank.
    """
    is_other_rank = any(line.startswith(("rank:", "world_size:")) for line in place_lines)
    subject = "dataset" if identity_lines else "rank" if is_other_rank else "worker"
    ways_out = []
    if identity_lines:
        names = list(dict.fromkeys(line.split(":", 1)[0] for line in identity_lines))
        ways_out.append(
            f"use the same {', '.join(names)}, or start an epoch from its first row with a new dataset and set_epoch()"
        )
    if place_lines and is_of_rank:
        ways_out.append(
            "this state is that of a single rank: load it on that rank, in a job of the same size, or load "
            "merge_states() of the states of all ranks, which any number of them can resume, as they can what "
            "SavableLoader.save_state_global() saves"
        )
    lines = (f"  {line}" for line in (*identity_lines, *place_lines))
    return "\n".join([f"this checkpoint does not belong to this {subject}", *lines, *ways_out])


def shorten(value: object) -> str:
    """Return the repr of any value, truncated to 40 characters."""
    try:
        text = _REPR.repr(value)
    except (ValueError, RecursionError):
        # A number of thousands of digits, or something deeply nested.
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _MAX_VALUE_LENGTH else f"{text[: _MAX_VALUE_LENGTH - 3]}..."
