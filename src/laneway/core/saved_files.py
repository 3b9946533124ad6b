"""The file table as states hold it: each file if it is short, else a digest of each part of about 1,024 files.

Both forms are ASCII strings; only the second one begins with `parts:`. A part begins at each path that a hash of the
path selects. So a file that is added, removed or changed changes the part that it is in, and no other.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from laneway.errors import StateFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from laneway.core.strings import Strings

MAX_ENCODED_BYTES: Final = 64 << 10
"""Files are named in a state while their encoding is shorter than this."""
# The digest of a file alone takes ten characters.
_MAX_NAMED_FILES = MAX_ENCODED_BYTES // 10
# A table of short and random paths is inflated to about 3 times its length, one of long and similar paths to 20 times.
_MAX_INFLATION = 32
_MIN_INFLATED_BYTES = 64 << 10

_PARTS = re.compile(r"parts:(\d{1,15}):(\d{1,19}):([!-~]*)")
_DIGEST_BYTES = 8
_PART_BITS = 10
FILES_PER_PART: Final = 1 << _PART_BITS
"""Mean number of files of a part."""
_MULTIPLIER, _MIXER = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9
_HASHED_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class FileFacts:
    """The metadata of one data file in a state."""

    size: int
    """Bytes."""
    rows: int
    """Number of rows."""
    digest: str
    """Digest of the footer or message headers."""


@dataclass(frozen=True, slots=True, eq=False)
class FileColumns:
    """What states say of each data file, as columns in the order of the paths."""

    paths: Strings
    """Paths relative to the dataset's root."""
    sizes: NDArray[np.int64]
    """Bytes of each file, shape (num_files,)."""
    rows: NDArray[np.int64]
    """Rows of each file, shape (num_files,)."""
    digests: Strings
    """Digest of each file."""


@dataclass(frozen=True, slots=True)
class SavedParts:
    """The file table of a state that does not name the files."""

    num_files: int
    """Number of data files."""
    num_rows: int
    """Number of their rows."""
    digests: tuple[bytes, ...]
    """Digest of each part, in the order of the files."""


def encode_files(files: FileColumns) -> str:
    """Return the file table as states hold it: see `decode_files` and `decode_parts`."""
    num_files = len(files.paths)
    if num_files <= _MAX_NAMED_FILES:
        facts = [list(files.paths), files.sizes.tolist(), files.rows.tolist(), list(files.digests)]
        text = json.dumps(facts, separators=(",", ":"))
        encoded = base64.b85encode(zlib.compress(text.encode(), 1)).decode("ascii")
        if len(encoded) < MAX_ENCODED_BYTES:
            return encoded
    digests = base64.b85encode(b"".join(part_digests(files, part_starts(files.paths)))).decode("ascii")
    return f"parts:{num_files}:{int(files.rows.sum())}:{digests}"


def names_files(encoded: str) -> bool:
    """Return whether an encoded file table is one for `decode_files`; else it is one for `decode_parts`."""
    return not encoded.startswith("parts:")


def decode_files(encoded: str) -> dict[str, FileFacts]:
    """Return path -> metadata from a file table that names the files.

    Memory is bounded: no more than 32 bytes are unpacked for each character, or 64 KiB for a short text.

    Raises:
        StateFormatError: `encoded` is damaged.
    """
    limit = max(_MIN_INFLATED_BYTES, _MAX_INFLATION * len(encoded))
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(base64.b85decode(encoded), limit)
        # Before the JSON is parsed, whose error would say less.
        reason = "" if unpacker.eof else f"it is cut off, or unpacks to more than {limit:,} bytes"
        found = {} if reason else _facts(json.loads(text))
    except (ValueError, TypeError, RecursionError, zlib.error) as error:
        raise StateFormatError(_damage(type(error).__name__)) from error
    if reason:
        raise StateFormatError(_damage(reason))
    return found


def _facts(columns: Any) -> dict[str, FileFacts]:  # noqa: ANN401 - any JSON value
    paths, sizes, rows, digests = columns
    found = dict(zip(paths, map(FileFacts, sizes, rows, digests), strict=True))
    counts = {type(value) for column in (sizes, rows) for value in column}
    texts = {type(value) for column in (paths, digests) for value in column}
    if {len(column) for column in columns} != {len(found)} or counts - {int} or texts - {str}:
        raise TypeError
    return found


def decode_parts(encoded: str) -> SavedParts:
    """Return the parts of a file table that does not name the files.

    Raises:
        StateFormatError: `encoded` is damaged.
    """
    match = _PARTS.fullmatch(encoded)
    try:
        digests = base64.b85decode(match[3]) if match else b"?"
    except ValueError as error:
        raise StateFormatError(_damage(type(error).__name__)) from error
    if match is None or len(digests) % _DIGEST_BYTES:
        raise StateFormatError(_damage("no list of digests"))
    starts = range(0, len(digests), _DIGEST_BYTES)
    return SavedParts(int(match[1]), int(match[2]), tuple(digests[start : start + _DIGEST_BYTES] for start in starts))


def part_starts(paths: Strings) -> NDArray[np.int64]:
    """Return the index of the first file of each part, shape (num_parts,)."""
    pieces = list(_pieces(paths))
    longest = max((len(piece.data) for piece in pieces), default=0)
    powers, inverses = _powers(_MULTIPLIER, longest), _powers(pow(_MULTIPLIER, -1, 1 << 64), longest)
    is_first = np.concatenate([np.zeros(0, bool), *(_selects(piece, powers, inverses) for piece in pieces)])
    is_first[:1] = True
    return np.flatnonzero(is_first).astype(np.int64)


def part_digests(files: FileColumns, starts: NDArray[np.int64]) -> list[bytes]:
    """Return a digest of each part, over the names and the metadata of its files."""
    stops = [*starts[1:].tolist(), len(files.paths)]
    return [_digest_of_part(files, start, stop) for start, stop in zip(starts.tolist(), stops, strict=True)]


def _digest_of_part(files: FileColumns, start: int, stop: int) -> bytes:
    state = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for texts in (files.paths.part(start, stop), files.digests.part(start, stop)):
        state.update(np.ascontiguousarray(texts.offsets, "<i8").data)
        state.update(texts.joined())
    for column in (files.sizes, files.rows):
        state.update(np.ascontiguousarray(column[start:stop], "<i8").data)
    return state.digest()


def _pieces(paths: Strings) -> Iterator[Strings]:
    """Yield the paths in pieces of about a megabyte, so that their hashes need little memory."""
    start = 0
    while start < len(paths):
        end = paths.offsets[start] + _HASHED_AT_ONCE
        stop = max(start + 1, int(np.searchsorted(paths.offsets, end, side="right")) - 1)
        yield paths.part(start, stop)
        start = stop


def _selects(paths: Strings, powers: NDArray[np.uint64], inverses: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return whether a part begins at each path: a hash of its bytes, a polynomial modulo 2**64, selects one in 1,024.

    The sum for a path begins at some power of the multiplier, by which it is divided: the multiplier is odd.
    """
    starts = paths.offsets[:-1]
    hashes = np.add.reduceat(paths.data * powers[: len(paths.data)], starts) * inverses[starts]
    hashes = (hashes ^ (hashes >> np.uint64(29))) * np.uint64(_MIXER)
    selected: NDArray[np.bool_] = hashes >> np.uint64(64 - _PART_BITS) == 0
    return selected


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    powers: NDArray[np.uint64] = np.cumprod(factors, dtype=np.uint64)
    return powers


def _damage(reason: str) -> str:
    return f"the file table of this state can't be read ({reason}): the state is truncated or damaged"
