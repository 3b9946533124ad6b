"""The messages of mismatches: how a saved state differs from the current run, with both values and a remedy."""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Any

from laneway.core.files import FileFacts, decode_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from laneway.core.files import FileTable
    from laneway.core.turns import WorkerPlace

_MAX_NAMED = 3
_MAX_VALUE_LENGTH = 40
_REPR = reprlib.Repr()
"""Doesn't write out a large value only to truncate it."""
_REPR.maxlevel, _REPR.maxlist, _REPR.maxstring, _REPR.maxother = 3, 20, 80, 80


def identity_differences(names: Iterable[str], saved: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Return a line for each of these fields that differs between a saved state and the current run."""
    return [
        f"{name}: saved {shorten(saved[name])}, this run has {shorten(present[name])}"
        for name in names
        if saved[name] != present[name]
    ]


def file_differences(encoded: str, files: FileTable) -> str:
    """Return the line that lists how the data files differ from those of a saved state.

    Args:
        encoded: `FileTable.encoded` of the saved state.
        files: The current data files.

    Raises:
        StateFormatError: `encoded` is damaged.
    """
    saved = decode_files(encoded)
    present = {
        path: FileFacts(int(size), int(rows), digest)
        for path, size, rows, digest in zip(files.paths, files.sizes, files.rows, files.digests, strict=True)
    }
    lines = [f"{path} {_change(saved[path], present[path])}" for path in present if path in saved]
    lines = [line for line in lines if not line.endswith(" ")]
    gone, new = [path for path in saved if path not in present], [path for path in present if path not in saved]
    for path in gone:
        renamed = next((name for name in new if present[name] == saved[path]), None)
        if renamed:
            new.remove(renamed)
        lines.append(f"{path} is now {renamed}" if renamed else f"{path} is gone")
    lines += [f"{path} is new" for path in new]
    if not lines:
        lines = ["the same files had other row groups, or other columns, when this state was saved"]
    if len(lines) > _MAX_NAMED:
        num_more = len(lines) - _MAX_NAMED
        lines[_MAX_NAMED:] = [f"and {num_more:,} more difference{'s' if num_more > 1 else ''}"]
    return "files: " + "; ".join(lines)


def _change(saved: FileFacts, present: FileFacts) -> str:
    if saved.rows != present.rows:
        return f"had {saved.rows:,} rows, now {present.rows:,}"
    if saved.size != present.size:
        return f"had {saved.size:,} bytes, now {present.size:,}"
    return "" if saved == present else f"was rewritten with the same size ({saved.size:,} bytes)"


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
    subject = "dataset" if identity_lines else "worker"
    ways_out = []
    if identity_lines:
        names = list(dict.fromkeys(line.split(":", 1)[0] for line in identity_lines))
        ways_out.append(
            f"use the same {', '.join(names)}, or start an epoch from its first row with a new dataset and set_epoch()"
        )
    if place_lines and is_of_rank:
        ways_out.append(
            "this state holds the lanes of a single rank; to resume on any number of ranks, save the whole job with "
            "SavableLoader.save_state_global(), or load merge_states() of the states of all ranks"
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
