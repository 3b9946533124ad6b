"""Where manifests are cached: one entry for each source, in a directory of the user or one that is shared."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, final

import fsspec
import pyarrow.fs
from fsspec.implementations.dirfs import DirFileSystem

from laneway.errors import DataFileError, ManifestCacheWarning
from laneway.storage.entries import get_entry
from laneway.storage.reading import read_range
from laneway.storage.redaction import redact
from laneway.storage.writing import write_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from laneway.storage.filesystem import Storage

    CacheDir: TypeAlias = str | os.PathLike[str] | bool | None
    """A directory or URL; True: the user's cache directory; None: that one for remote storage only; False: none."""

_TELL_PLACES_APART: Final = frozenset(
    {"account_name", "endpoint", "endpoint_override", "endpoint_url", "fo", "host", "port"}
    | {"project", "scheme", "target_protocol", "url"}
)
_AWAY = "give another cache_dir, or cache_dir=False to do without"
_warned: set[str] = set()


@final
@dataclass(frozen=True, slots=True)
class CacheEntry:
    """The place in a cache that one source has. No failure of the cache is an error: it is told once, as a warning."""

    storage: Storage
    """The cache; its root is the directory."""
    name: str
    """Name of the entry."""

    @classmethod
    def find(cls, cache_dir: CacheDir, storage: Storage, key: Sequence[str]) -> CacheEntry | None:
        """Return the entry of a source, or None where it is not to be cached.

        Args:
            cache_dir: What the user gave.
            storage: Where the source is.
            key: What tells it from other sources there.
        """
        if cache_dir is False or (cache_dir is None and not _is_worthwhile(storage.filesystem)):
            return None
        if cache_dir is None or cache_dir is True:
            cache_dir = _user_directory()
            if not cache_dir.is_absolute():
                # A process without a home would write into a directory "~" below the working directory.
                return None
        place = storage.beside(cache_dir)
        facts = [storage.redact(storage.root), *key, *_identity(storage.filesystem)]
        # Without secrets, so that new credentials find the entry of the old ones.
        digest = hashlib.blake2b(json.dumps([redact(fact) for fact in facts]).encode(), digest_size=16)
        # The underscore keeps it from being data where the cache is the dataset's own directory.
        return cls(place, f"_manifest-{digest.hexdigest()}.json.gz")

    @property
    def redacted_path(self) -> str:
        """Path of the entry, for messages."""
        return self.storage.redact(self._path)

    def read(self) -> bytes | None:
        """Return what the entry holds, or None."""
        try:
            if self.storage.is_local:
                # One look: an entry may be replaced between two.
                return Path(self._path).read_bytes()
            entry = get_entry(self.storage, self._path)
            return None if entry is None else read_range(self.storage, self._path, 0, entry.size, entry.version)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn_once(f"the manifest cache can't be read: {error}; {_AWAY}")
            return None

    def write(self, data: bytes) -> None:
        """Replace what the entry holds, at once."""
        try:
            if self.storage.is_local:
                Path(self.storage.root).mkdir(parents=True, exist_ok=True)
            write_file(self.storage, self._path, data)
        except OSError as error:
            self._warn_once(f"the manifest can't be cached, so that the next start scans again: {error}; {_AWAY}")

    def warn_damaged(self, reason: DataFileError) -> None:
        """Tell that what the entry holds is of no use."""
        message = f"a cached manifest is scanned anew: {reason}; if that happens again, {_AWAY}"
        warnings.warn(message, ManifestCacheWarning, stacklevel=2)

    @property
    def _path(self) -> str:
        return self.storage.join(self.name)

    def _warn_once(self, message: str) -> None:
        where = repr(self.storage)
        if where not in _warned:
            _warned.add(where)
            warnings.warn(message, ManifestCacheWarning, stacklevel=2)


def _user_directory() -> Path:
    """Return the directory that the platform has for the caches of a user."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.expanduser raises where there is no home
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "laneway" / "Cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "laneway"
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else home / ".cache") / "laneway"  # noqa: PTH117 - "" is no path


def _is_worthwhile(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Return whether footers take requests, and the files outlive this process."""
    innermost = list(_nested(filesystem))[-1]
    protocol = getattr(innermost, "protocol", ())
    local = isinstance(innermost, pyarrow.fs.LocalFileSystem)
    return not local and not {"memory", "file"}.intersection((protocol,) if isinstance(protocol, str) else protocol)


def _identity(filesystem: fsspec.AbstractFileSystem) -> Iterator[str]:
    """Yield what tells a filesystem from others with the same paths, and is no secret."""
    for each in _nested(filesystem):
        yield f"{type(each).__module__}.{type(each).__qualname__}"
        if isinstance(each, pyarrow.fs.FileSystem):
            yield getattr(each, "base_path", "")
            yield from _places(each.__reduce__()[1])
        else:
            yield each.path if isinstance(each, DirFileSystem) else ""
            yield from _places(each.storage_options)


def _nested(filesystem: object) -> Iterator[Any]:
    """Yield a filesystem, and the one that it is a wrapper around, and so on."""
    while isinstance(filesystem, (fsspec.AbstractFileSystem, pyarrow.fs.FileSystem)):
        yield filesystem
        filesystem = getattr(filesystem, "base_fs", None) or getattr(filesystem, "fs", None)


def _places(options: object) -> Iterator[str]:
    if isinstance(options, (list, tuple)):
        for each in options:
            yield from _places(each)
    elif isinstance(options, dict):
        for key in sorted(map(str, options)):
            value = options.get(key)
            if key in _TELL_PLACES_APART and isinstance(value, (str, int)):
                yield f"{key}={value}"
            elif isinstance(value, dict):
                yield from _places(value)
