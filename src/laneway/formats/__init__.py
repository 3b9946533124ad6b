"""The file formats that laneway reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from laneway.errors import DataFileError
from laneway.formats.arrow import ArrowFormat
from laneway.formats.base import BlockMatches, BlockReader, FileScan, Format, PlannedFile
from laneway.formats.parquet import ParquetFormat
from laneway.storage.reading import read_range

if TYPE_CHECKING:
    from collections.abc import Mapping

    from laneway.storage.filesystem import Storage

__all__ = [
    "FORMATS",
    "ArrowFormat",
    "BlockMatches",
    "BlockReader",
    "FileScan",
    "Format",
    "ParquetFormat",
    "PlannedFile",
    "format_of_content",
    "format_of_suffix",
]

_KNOWN: Final[tuple[Format, ...]] = (ParquetFormat(), ArrowFormat())
FORMATS: Final[Mapping[str, Format]] = {known.name: known for known in _KNOWN}
"""The formats by name."""

_BY_SUFFIX: Final[Mapping[str, Format]] = {suffix: known for known in _KNOWN for suffix in known.suffixes}
_HEAD_BYTES = 8


def format_of_suffix(path: str) -> Format | None:
    """Return the format of a file suffix, or None."""
    return _BY_SUFFIX.get(path[path.rfind(".") :].lower())


def format_of_content(storage: Storage, path: str, size: int) -> Format:
    """Return the format of a file, from its first bytes.

    Raises:
        DataFileError: The file is unreadable, or its format is unknown.
    """
    head = read_range(storage, path, 0, min(size, _HEAD_BYTES))
    found = next((known for known in _KNOWN if known.recognises(head)), None)
    if found is None:
        problem = f"begins with {head!r}" if head else "is empty"
        message = f"{storage.redact(path)} {problem}: it is neither a Parquet nor an Arrow IPC file"
        raise DataFileError(message)
    return found
