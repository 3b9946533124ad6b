"""Ranges of bytes: requests for them, checks of the responses, and merging of neighbours."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from laneway.storage.retries import TransientError

if TYPE_CHECKING:
    from collections.abc import Iterable

Data: TypeAlias = bytes | memoryview
"""Bytes, or a view of memory that a client owns."""

PARTIAL_CONTENT: Final = 206
"""HTTP status of a response that holds the requested range."""
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Request(NamedTuple):
    """A request for the bytes [start, stop) of a file."""

    path: str
    """Path of the file."""
    start: int
    stop: int
    version: str = ""
    """Required version of the file, for clients that can make a request conditional; "" for any."""

    @property
    def text(self) -> str:
        """Description of the range, for messages."""
        return f"requested bytes {self.start:,} to {self.stop:,}"


class ShortBodyError(TransientError):
    """The response holds a different number of bytes than requested, or a different range."""


class VersionError(Exception):
    """The object no longer has the requested version."""


def check_data(data: Data, request: Request) -> Data:
    """Return the data of a range, or raise ShortBodyError if its length is not the requested one."""
    check_length(request, len(data))
    return data


def check_length(request: Request, length: int | None) -> None:
    """Raise unless a response has the requested length; None: the response does not state its length."""
    num_bytes = request.stop - request.start
    if length is not None and length != num_bytes:
        message = f"{request.text} ({num_bytes:,} bytes), received {length:,} bytes"
        raise ShortBodyError(message)


def check_version(request: Request, etag: str | None) -> None:
    """Raise if a response is of another version: a server without conditional requests ignores the condition."""
    if request.version and etag and etag.strip('"') != request.version.strip('"'):
        raise VersionError


def check_content_range(request: Request, status: int, content_range: str | None) -> None:
    """Raise unless a response claims to hold the requested range, or the whole file for a range that starts at 0."""
    if status != PARTIAL_CONTENT:
        if request.start == 0:
            return
        message = f"{request.text}, received the whole file"
        raise ShortBodyError(message)
    match = _CONTENT_RANGE.fullmatch(content_range or "")
    if match is not None and (int(match[1]), int(match[2]) + 1) != (request.start, request.stop):
        message = f"{request.text}, received {content_range}"
        raise ShortBodyError(message)


def coalesce(ranges: Iterable[tuple[int, int]], max_gap_bytes: int, max_span_bytes: int) -> list[tuple[int, int]]:
    """Merge ranges that are close together, and return the merged ranges, sorted and disjoint.

    Args:
        ranges: Any number of [start, stop).
        max_gap_bytes: Largest gap to read over, where that is cheaper than another request.
        max_span_bytes: Longest range that merging may create: a lost connection costs all of it.
    """
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        is_close = bool(merged) and start - merged[-1][1] <= max_gap_bytes
        if is_close and max(stop, merged[-1][1]) - merged[-1][0] <= max_span_bytes:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged
