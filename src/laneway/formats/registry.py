"""The file formats that there are: those of laneway, and those that installed packages add as entry points."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final, final

from laneway.errors import DataFileError
from laneway.formats.arrow import ArrowFormat
from laneway.formats.delimited import DelimitedFormat
from laneway.formats.json_lines import JsonLinesFormat
from laneway.formats.lance import LanceFormat
from laneway.formats.orc import OrcFormat
from laneway.formats.parquet import ParquetFormat

if TYPE_CHECKING:
    from laneway.formats.base import Format

GROUP: Final = "laneway.formats"
"""The group of entry points that add formats: each names an object that implements `Format`, or a function that
returns one."""
_HEAD_BYTES: Final = 8


@final
class Formats(Mapping[str, "Format"]):
    """Formats by name. Entry points are looked up when a name, a suffix or a file is none of laneway's own."""

    def __init__(self, built_in: tuple[Format, ...]) -> None:
        """Store the formats that need no entry point."""
        self._by_name = {each.name: each for each in built_in}
        self._by_suffix = {suffix: each for each in built_in for suffix in each.suffixes}
        self._is_complete = False
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Format:
        """Return a format by its name."""
        if name not in self._by_name:
            self._complete()
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        self._complete()
        return iter(self._by_name)

    def __len__(self) -> int:
        self._complete()
        return len(self._by_name)

    def of_suffix(self, path: str) -> Format | None:
        """Return the format of the last suffix of a path, or of its last two; None: unknown."""
        suffixes = path[path.rfind("/") + 1 :].lower().split(".")[1:]
        candidates = [f".{'.'.join(suffixes[-count:])}" for count in (2, 1) if len(suffixes) >= count]
        found = self._find(candidates)
        if found is None and candidates and not self._is_complete:
            self._complete()
            found = self._find(candidates)
        return found

    @contextmanager
    def including(self, added: Format) -> Iterator[None]:
        """Add a format while the context lasts, instead of one of the same name or suffix; see `laneway.testing`."""
        before = self._by_name, self._by_suffix
        self._by_name = {**self._by_name, added.name: added}
        self._by_suffix = {**self._by_suffix, **dict.fromkeys(added.suffixes, added)}
        try:
            yield
        finally:
            self._by_name, self._by_suffix = before

    def _find(self, suffixes: list[str]) -> Format | None:
        return next((self._by_suffix[each] for each in suffixes if each in self._by_suffix), None)

    def _complete(self) -> None:
        """Add the formats of entry points; one that can't be loaded, or is no format, is left out with a warning."""
        if self._is_complete:
            return
        with self._lock:
            for point in () if self._is_complete else entry_points(group=GROUP):
                problem = self._add(point.load, point.name)
                if problem:
                    warnings.warn(f"the entry point {point.name} = {point.value} of {GROUP} {problem}", stacklevel=4)
            self._is_complete = True

    def _add(self, load: Callable[[], Any], name: str) -> str | None:
        """Add a format, and return why it can't be added, or None."""
        try:
            loaded = load()
            added: Format = loaded() if callable(loaded) else loaded
            suffixes, given = added.suffixes, added.name
        except Exception as error:  # noqa: BLE001 - of other packages
            return f"can't be loaded: {type(error).__name__}: {error}"
        if given != name:
            return f"is a format named {given!r}: name the entry point like it"
        taken = [each for each in suffixes if each in self._by_suffix]
        if name in self._by_name or taken:
            return f"is left out: there is a format of the name or suffix {taken[0] if taken else name!r} already"
        self._by_name[name] = added
        self._by_suffix.update(dict.fromkeys(suffixes, added))
        return None


FORMATS: Final = Formats(
    (
        *(ParquetFormat(), ArrowFormat(), OrcFormat(), LanceFormat()),
        *(JsonLinesFormat(), DelimitedFormat("csv", ","), DelimitedFormat("tsv", "\t")),
    )
)
"""The formats by name."""


def format_of_suffix(path: str) -> Format | None:
    """Return the format of a file suffix, or None."""
    return FORMATS.of_suffix(path)


def format_of_content(head: bytes, name: str) -> Format:
    """Return the format of a file.

    Args:
        head: The first bytes of the file, at least eight unless it is shorter.
        name: Its name, for messages.

    Raises:
        DataFileError: The format is unknown.
    """
    head = head[:_HEAD_BYTES]
    found = next((known for known in FORMATS.values() if known.recognises(head)), None)
    if found is None:
        problem = f"begins with {head!r}, as no known format does" if head else "is empty"
        message = f"{name} {problem}: if it is one of {', '.join(FORMATS)}, choose it with format="
        raise DataFileError(message)
    return found
