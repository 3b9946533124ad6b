"""The cache of what was found in files: manifests, counts, vocabularies and lengths.

It is in the user's cache directory, or in a given one.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, final

import fsspec
import pyarrow.fs
from fsspec.implementations.dirfs import DirFileSystem

from laneway.catalog.sharing import read_local
from laneway.errors import DataFileError, ManifestCacheWarning
from laneway.storage.entries import get_entry
from laneway.storage.reading import read_range
from laneway.storage.redaction import redact
from laneway.storage.writing import write_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from laneway.storage.filesystem import Storage

    CacheDir: TypeAlias = str | os.PathLike[str] | bool | None
    """A directory or URL; True: the user's cache directory; None: the same for remote storage only; False: none."""

Value = TypeVar("Value")

_IDENTIFYING_OPTIONS: Final = frozenset(
    {"account_name", "endpoint", "endpoint_override", "endpoint_url", "fo", "host", "port"}
    | {"project", "scheme", "target_protocol", "url"}
)
"""Options that distinguish two storages with the same paths. Some may hold secrets, which are redacted before use."""
_HINT = "give another cache_dir, or cache_dir=False to disable the cache"
_warned: set[str] = set()


@final
@dataclass(frozen=True, slots=True)
class CacheEntry:
    """The cache entry of a source. Failures of the cache are never errors: each cache warns once."""

    storage: Storage
    """The cache: its root is the directory of the entries."""
    name: str
    """Name of the entry."""
    kind: str = "manifest"
    """What is cached."""

    @classmethod
    def find(
        cls, cache_dir: CacheDir, storage: Storage, key: Sequence[str], kind: str = "manifest"
    ) -> CacheEntry | None:
        """Return the entry of a source, or None if it is not to be cached.

        Args:
            cache_dir: The option of the user.
            storage: The storage of the source.
            key: Identifies the source within its storage.
            kind: What is cached: "manifest", "selection", "vocabulary" or "lengths".

        Raises:
            TypeError: `cache_dir` is nothing that can be one.
        """
        if cache_dir is not None and not isinstance(cache_dir, (str, os.PathLike, bool)):
            message = f"cache_dir must be a directory or a URL, True, False or None, not {cache_dir!r}"
            raise TypeError(message)
        if cache_dir is False or (cache_dir is None and not _is_worthwhile(storage.filesystem)):
            return None
        if cache_dir is None or cache_dir is True:
            cache_dir = _user_directory()
            if not cache_dir.is_absolute():
                # A process without a home would write into a directory "~" below the working directory.
                return None
        cache = storage.beside(cache_dir)
        identity = [storage.redact(storage.root), *key, *_identity(storage.filesystem)]
        # Without secrets, so that the entry is still found with new credentials.
        digest = hashlib.blake2b(json.dumps([redact(part) for part in identity]).encode(), digest_size=16)
        # The underscore hides it from scans if the cache is the dataset's own directory.
        return cls(cache, f"_{kind}-{digest.hexdigest()}", kind)

    @property
    def redacted_path(self) -> str:
        """Path of the entry, for messages."""
        return self.storage.redact(self._path)

    @property
    def local_path(self) -> str | None:
        """Path of the entry if it is a local file."""
        return self._path if self.storage.is_local else None

    def read(self) -> memoryview | None:
        """Return the data of the entry, or None."""
        try:
            if self.storage.is_local:
                return read_local(self._path)
            entry = get_entry(self.storage, self._path)
            if entry is None:
                return None
            return memoryview(read_range(self.storage, self._path, 0, entry.size, entry.version))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn_once(f"the {self.kind} cache can't be read: {error}; {_HINT}")
            return None

    def load(self, decode: Callable[[memoryview], Value]) -> Value | None:
        """Return what the entry holds, or None if there is none, or, with a warning, if it is damaged.

        Args:
            decode: Called with the data of the entry; it raises DataFileError if they are damaged.
        """
        data = self.read()
        if data is None:
            return None
        try:
            return decode(data)
        except DataFileError as error:
            self._warn_damaged(error)
            return None

    def write(self, data: bytes) -> None:
        """Replace the data of the entry atomically."""
        try:
            if self.storage.is_local:
                Path(self.storage.root).mkdir(parents=True, exist_ok=True)
            write_file(self.storage, self._path, data)
        except OSError as error:
            self._warn_once(f"the {self.kind} can't be cached, so the next run will scan again: {error}; {_HINT}")

    def _warn_damaged(self, reason: DataFileError) -> None:
        """Warn that the entry will be replaced."""
        message = f"a cached {self.kind} is unusable, scanning again: {reason}; if this repeats, {_HINT}"
        warnings.warn(message, ManifestCacheWarning, stacklevel=3)

    @property
    def _path(self) -> str:
        return self.storage.join(self.name)

    def _warn_once(self, message: str) -> None:
        cache = repr(self.storage)
        if cache not in _warned:
            _warned.add(cache)
            warnings.warn(message, ManifestCacheWarning, stacklevel=2)


def _user_directory() -> Path:
    """Return the user's cache directory on this platform."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.expanduser raises where there is no home
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "laneway" / "Cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "laneway"
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else home / ".cache") / "laneway"  # noqa: PTH117 - may be ""


def _is_worthwhile(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Return whether caching pays off: footers cost requests and the files persist."""
    innermost = list(_nested(filesystem))[-1]
    protocol = getattr(innermost, "protocol", ())
    local = isinstance(innermost, pyarrow.fs.LocalFileSystem)
    return not local and not {"memory", "file"}.intersection((protocol,) if isinstance(protocol, str) else protocol)


def _identity(filesystem: fsspec.AbstractFileSystem) -> Iterator[str]:
    """Yield strings that distinguish a filesystem from others with the same paths, without secrets."""
    for each in _nested(filesystem):
        yield f"{type(each).__module__}.{type(each).__qualname__}"
        if isinstance(each, pyarrow.fs.FileSystem):
            yield getattr(each, "base_path", "")
            yield from _identifying_options(each.__reduce__()[1])
        else:
            yield each.path if isinstance(each, DirFileSystem) else ""
            yield from _identifying_options(each.storage_options)


def _nested(filesystem: object) -> Iterator[Any]:
    """Yield a filesystem, the filesystem that it wraps, and so on."""
    while isinstance(filesystem, (fsspec.AbstractFileSystem, pyarrow.fs.FileSystem)):
        yield filesystem
        filesystem = getattr(filesystem, "base_fs", None) or getattr(filesystem, "fs", None)


def _identifying_options(options: object) -> Iterator[str]:
    if isinstance(options, (list, tuple)):
        for each in options:
            yield from _identifying_options(each)
    elif isinstance(options, dict):
        for key in sorted(map(str, options)):
            value = options.get(key)
            if key in _IDENTIFYING_OPTIONS and isinstance(value, (str, int)):
                yield f"{key}={value}"
            elif isinstance(value, dict):
                yield from _identifying_options(value)
