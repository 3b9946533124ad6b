"""Where data files are: a filesystem that each process makes anew, and reads that check what they got."""

from __future__ import annotations

import inspect
import io
import logging
import os
import pickle
import re
import stat
import time
import uuid
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, TypeVar, cast, final

import fsspec
import pyarrow.fs
from fsspec.asyn import AsyncFileSystem
from fsspec.core import split_protocol, url_to_fs
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from laneway.errors import DataFileError, LanewayError
from laneway.storage.ranges import RangeClient, Request, ShortBodyError, VersionError, checked, client_for, in_time
from laneway.storage.redaction import tells_a_secret, without_secrets
from laneway.storage.retries import GaveUpError, RetryPolicy, is_transient, retried

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from fsspec import AbstractFileSystem

    from laneway.storage.ranges import Data

    T = TypeVar("T")
    FileSystem: TypeAlias = AbstractFileSystem | pyarrow.fs.FileSystem

_WILDCARDS = "*?["

# What filesystems call the version of a file; an ETag tells more than a time does.
_VERSION_KEYS = ("ETag", "etag", "e_tag", "blob_id", "mtime", "LastModified", "last_modified", "updated", "created")
_CONNECTIONS: Final = 32
_log = logging.getLogger(__name__)


_kept: dict[int, object] = {}
"""What a forked child must not destroy: closing a connection there takes it out of the parent's event loop too, as both
share its epoll instance, and fsspec's cache lets go of every filesystem in a child."""


class _Made(NamedTuple):
    """What a process made for itself."""

    pid: int
    """The process."""
    filesystem: AbstractFileSystem
    """The filesystem."""
    client: RangeClient
    """Asks it for ranges."""


class Entry(NamedTuple):
    """A file or a directory, as its storage lists it."""

    path: str
    """Path as the storage understands it."""
    kind: str
    """"file" or "directory"."""
    size: int
    """Bytes."""
    version: str
    """What changes when the file is written again: its ETag, else its time in ns, else nothing."""


@final
class Storage:
    """A place that holds data files.

    The filesystem is made in the process that uses it and never crosses a fork or a pickle: clients of
    object stores break when they do. A filesystem that was given is copied for another process, by
    pickling it there. Everything a message may show comes from `display`, which holds no credentials.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        filesystem: FileSystem | None = None,
        storage_options: Mapping[str, Any] | None = None,
        retries: RetryPolicy | None = None,
    ) -> None:
        """Find the filesystem of `source`, without touching any file.

        Args:
            source: A path, absolute or relative, or a URL that fsspec knows; it becomes `root`.
            filesystem: The filesystem that `source` is a path of; by default the URL tells.
            storage_options: Arguments for the filesystem that the URL tells: credentials, endpoints.
            retries: What is tried again, and for how long; None: `RetryPolicy()`.

        Raises:
            ValueError: Both `filesystem` and `storage_options` are given, or the URL's protocol is unknown.
        """
        if filesystem is not None and storage_options:
            message = "storage_options configure the filesystem of a URL: give them or filesystem, not both"
            raise ValueError(message)
        self._retries = retries or RetryPolicy()
        self._url = os.fspath(source)
        self._options = dict(storage_options or {})
        self._arguments = _with_timeouts(self._url, self._options, self._retries)
        self._given = _as_fsspec(filesystem)
        self._made: _Made | None = None
        if self._given is not None:
            self._made = _Made(os.getpid(), self._given, client_for(self._given))
        self._queries: dict[str, str] = {}
        self.is_local = isinstance(self.filesystem, LocalFileSystem)
        """Whether paths are paths of this machine, to be opened and mapped without a filesystem between."""
        self.root = self.path_of(source)
        """The path of `source`, as the filesystem understands it."""

    @property
    def filesystem(self) -> AbstractFileSystem:
        """The filesystem of this process."""
        return self._own().filesystem

    def _own(self) -> _Made:
        """Return what this process made, or make it."""
        made = self._made
        if made is None or made.pid != os.getpid():
            if made is not None and not made.client.survives_fork:
                message = (
                    "obstore does not work in a process that was forked after its use: start workers with "
                    "multiprocessing_context='spawn' or 'forkserver', or read through s3fs or pyarrow.fs"
                )
                raise DataFileError(message)
            if self._given is None:
                filesystem = url_to_fs(self._url, **self._arguments)[0]
            else:
                # Pickling rebuilds wrapped and nested filesystems too, each from its arguments.
                filesystem = pickle.loads(pickle.dumps(self._given))  # noqa: S301 - bytes made right here
            if made is not None:
                _kept[id(made)] = made
            made = self._made = _Made(os.getpid(), filesystem, client_for(filesystem))
            if self._given is None:
                _kept[id(filesystem)] = filesystem
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Leave the live filesystem behind."""
        return {**self.__dict__, "_made": None}

    def __repr__(self) -> str:
        return f"Storage({self.display(self.root)!r})"

    def at(self, root: str) -> Storage:
        """Return the same storage with another root, a path as the filesystem understands it."""
        other = Storage.__new__(Storage)
        other.__dict__.update(self.__dict__)
        other.root = root
        return other

    def path_of(self, source: str | os.PathLike[str]) -> str:
        """Return the path of a URL or path of this storage, as its filesystem understands it.

        Raises:
            ValueError: `source` belongs to another filesystem.
        """
        text = os.fspath(source)
        if self._given is not None:
            path = cast("str", self._given._strip_protocol(text))  # noqa: SLF001 - fsspec has no other name for it
        else:
            filesystem, path = url_to_fs(text, **self._arguments)
            if filesystem != self.filesystem:
                first, second = without_secrets(self._url), without_secrets(text)
                message = f"{first} and {second} are on different filesystems: read them as two datasets"
                raise ValueError(message)
        if self.is_local:
            return os.path.normpath(path)
        mark, query = "", ""
        if path.startswith(("http://", "https://")):
            path, mark, query = path.partition("?")
        if mark:
            # Signatures live in queries, and paths end up in states and messages: keep them apart.
            self._queries[path] = mark + query
        return path if path.strip("/") == "" else path.rstrip("/")

    def beside(self, source: str | os.PathLike[str]) -> Storage:
        """Return the storage of a local path or a URL, with the options of this one if it is of the same filesystem."""
        protocol = split_protocol(os.fspath(source))[0]
        mine = self.filesystem.protocol
        if protocol and not self.is_local and protocol in ((mine,) if isinstance(mine, str) else mine):
            return Storage(source, self._given, self._options, self._retries)
        return Storage(source, retries=self._retries)

    def join(self, relative: str) -> str:
        """Return the path of a file that is given relative to the root."""
        return relative if self.root == "" else f"{self.root.rstrip('/')}/{relative}"

    def display(self, path: str) -> str:
        """Return `path` for messages: as a URL where it is one, without userinfo and query."""
        if not self.is_local and self._given is None and "://" not in path:
            path = cast("str", self.filesystem.unstrip_protocol(path))
        return without_secrets(path)

    def info(self, path: str) -> Entry | None:
        """Return what is at `path` now, or None if nothing is.

        Raises:
            DataFileError: The storage refused to tell.
        """

        def ask() -> Entry | None:
            try:
                if self.is_local:
                    return _local_entry(path, os.stat(path))  # noqa: PTH116 - paths are strings here
                facts = self._facts(path)
            except FileNotFoundError:
                return None
            return Entry(path, str(facts["type"]), int(facts.get("size") or 0), _version(facts))

        return self._ask(path, ask)

    def size(self, path: str) -> int:
        """Return the size of a file in bytes, as it is now.

        Raises:
            DataFileError: The file is missing or can't be asked for.
        """
        if self.is_local:
            with self._naming(path):
                return os.stat(path).st_size  # noqa: PTH116 - paths are strings here
        return int(self._ask(path, partial(self._facts, path))["size"])

    def find(self, directory: str, prefix: str = "") -> list[Entry]:
        """Return every file below a directory as it is now, in any order, with one listing where the store has it.

        Stores that can leave out what begins with something else than `prefix` do so; others list everything.

        Local directories whose name begins with `_` or `.` are not entered. An object store without directories may
        return nothing for one that is missing, and for the path of a file that file.

        Raises:
            DataFileError: The directory, or one below it, is missing or can't be listed.
        """
        if self.is_local:
            return list(self._walk(directory, (os.path.realpath(directory),)))
        filesystem = self.filesystem
        filesystem.invalidate_cache()
        if isinstance(filesystem, ArrowFSWrapper):
            selector = pyarrow.fs.FileSelector(directory, recursive=True)
            infos = self._list(directory, lambda: filesystem.fs.get_file_info(selector))
            files = [info for info in infos if info.type == pyarrow.fs.FileType.File]
            return [Entry(info.path, "file", info.size, str(info.mtime_ns or "")) for info in files]
        # Where fsspec walks by itself, it would leave out the directories that it can't list.
        options: dict[str, str] = {"on_error": "raise"} if _is_walked(filesystem) else {}
        if prefix and _takes_prefix(filesystem):
            options["prefix"] = prefix
        found = self._list(directory, lambda: filesystem.find(directory, detail=True, **options))
        return [entry for path, facts in found.items() if (entry := self._entry(path, facts)).kind == "file"]

    @property
    def lists_at_once(self) -> bool:
        """Whether `find` is one listing, instead of one for each directory."""
        return not self.is_local and not _is_walked(self.filesystem)

    def glob(self, pattern: str) -> list[Entry]:
        """Return every file that matches now, or lies below a directory that does, in any order.

        Wildcards are those of fsspec: `*`, `?`, `[...]`, and `**` for any number of directories.

        Raises:
            DataFileError: The storage can't be listed.
        """
        root = glob_root(pattern)
        depth = pattern.count("/") + 1
        matches = re.compile(glob_translate(pattern)).match
        below_root = pattern[len(root) :].lstrip("/")
        prefix = re.split(r"[*?\[]", below_root)[0]
        narrows = bool(prefix) and not self.is_local and _takes_prefix(self.filesystem)
        if "**" not in pattern and "/" not in below_root and not narrows:
            found = [entry for entry in self._children(root) if matches(entry.path.rstrip("/"))]
            directories = [entry.path for entry in found if entry.kind == "directory"]
            below = [entry for directory in directories for entry in self.find(directory)]
            return [entry for entry in found if entry.kind == "file"] + below
        if (self.is_local or not self.lists_at_once) and self.info(root) is None:
            return []

        def is_below_a_match(path: str) -> bool:
            parts = path.split("/")
            depths = range(depth, depth + 1) if "**" not in pattern else range(len(parts), 0, -1)
            return any(matches("/".join(parts[:count])) for count in depths if count <= len(parts))

        return [entry for entry in self.find(root, prefix) if is_below_a_match(entry.path)]

    def read_range(self, path: str, start: int, stop: int, version: str = "") -> bytes:
        """Return the bytes [start, stop) of a file; see `read_ranges`."""
        return bytes(self.read_ranges(path, [(start, stop)], version)[0])

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]], version: str = "") -> list[Data]:
        """Return the bytes [start, stop) of a file for each range; of a remote one, all are asked for at once.

        What fails and may pass is tried again, as `retries` says.

        Args:
            path: The file.
            ranges: The ranges.
            version: What the file's version was when it was listed; "" if that is unknown.

        Raises:
            DataFileError: The file is missing, unreadable or of another version, or the storage returned other bytes
                than those, or nothing in time.
        """
        wanted = [Request(self._asked(path), *each) for each in ranges]
        if self.is_local:
            return self._read_local(path, wanted)
        client = self._own().client
        if condition := self.condition(version):
            wanted, version = [each._replace(version=condition) for each in wanted], ""
        found: dict[int, Data] = {index: b"" for index, each in enumerate(wanted) if each.start >= each.stop}

        def attempt(limit_s: float) -> None:
            end = time.monotonic() + limit_s
            error = _fetch_missing(client, wanted, found, limit_s)
            if isinstance(error, ShortBodyError) or (version and error is None):
                # After the bytes have come: a file that is still of this version was so when they were read.
                size, version_now = self._look_at(path, max(end - time.monotonic(), 1.0))
                if version and _differ(version, version_now):
                    raise VersionError
                if error is not None and size is not None and size < max(each.stop for each in wanted):
                    raise self.problem(path, "is cut short", error)
            if error is not None:
                raise error

        with self._naming(path):
            if len(found) < len(wanted):
                retried(attempt, self._retries, on_retry=partial(self._tell, path))
        return [found[index] for index in range(len(wanted))]

    def _look_at(self, path: str, limit_s: float) -> tuple[int | None, str]:
        """Return size and version of a file as they are now, or what is known of them."""
        facts = _answer(partial(self._facts, path), limit_s)
        size = facts.get("size")
        return None if size is None else int(size), _version(facts)

    def _facts(self, path: str) -> dict[str, Any]:
        filesystem = self.filesystem
        filesystem.invalidate_cache()
        facts: dict[str, Any] = filesystem.info(self._asked(path))
        return facts

    def _ask(self, path: str, call: Callable[[], T], timeout_s: float | None = None) -> T:
        """Return what a filesystem answers about `path`, tried again where that may help.

        Args:
            path: What is asked about.
            call: Asks.
            timeout_s: Seconds that each try of a remote one has; None: as many as `retries` gives a request.
        """

        def attempt(limit_s: float) -> T:
            # A local disk has nothing to wait for that a thread could be left behind with.
            return call() if self.is_local else _answer(call, limit_s if timeout_s is None else timeout_s)

        with self._naming(path):
            return retried(attempt, self._retries, on_retry=partial(self._tell, path))

    def _list(self, path: str, call: Callable[[], T]) -> T:
        """Return what a filesystem answers to a listing, which may be any number of requests."""
        return self._ask(path, call, self._retries.listing_timeout_s)

    def _tell(self, path: str, error: BaseException, next_step: str) -> None:
        """Log what is tried again: somebody may wonder why a job waits."""
        _log.warning("%s; %s", self.problem(path, "did not answer as it should", error), next_step)

    def _read_local(self, path: str, requests: Sequence[Request]) -> list[Data]:
        found: list[Data] = []
        with self._naming(path), open(path, "rb") as file:  # noqa: PTH123 - paths are strings here, 10,000 of them
            for each in requests:
                file.seek(each.start)
                found.append(checked(file.read(max(0, each.stop - each.start)), each))
        return found

    @property
    def reads_at_once(self) -> bool:
        """Whether `read_tails` sends its requests at the same time."""
        return self._own().client.is_concurrent

    def condition(self, version: str) -> str:
        """Return the version that a request can demand of a file; "" where only another look at the file tells it."""
        # Not a time: those of a listing may be finer than those of an answer.
        is_demanded = not self.is_local and self._own().client.is_conditional and not version.isdigit()
        return version if is_demanded else ""

    def read_tails(
        self, paths: Sequence[str], sizes: Sequence[int], num_bytes: int, versions: Sequence[str]
    ) -> list[bytes | None]:
        """Return the last `num_bytes` of each file, or all of it; None for one where that did not succeed at once.

        What is None is to be asked for with `read_range`, which tries again and says what fails.
        """
        lengths = [min(size, num_bytes) for size in sizes]
        starts = [size - length for size, length in zip(sizes, lengths, strict=True)]
        tails: Iterable[Data | BaseException | None] = [None] * len(paths)
        if self.is_local:
            tails = map(_read_at, paths, starts, lengths)
        elif self.reads_at_once and all(lengths):
            requests = list(map(Request, map(self._asked, paths), starts, sizes, versions))
            limit_s = min(self._retries.attempt_timeout_s, self._retries.deadline_s)
            with suppress(Exception):
                tails = self._own().client.fetch(requests, limit_s)
        return [
            bytes(tail) if isinstance(tail, (bytes, memoryview)) and len(tail) == length else None
            for tail, length in zip(tails, lengths, strict=True)
        ]

    def open(self, path: str, size: int, version: str = "") -> RangeFile:
        """Return a seekable file object, which reads exactly what it is asked for and nothing ahead."""
        return RangeFile(self, path, size, version)

    def write(self, path: str, data: bytes) -> None:
        """Write a file, whole or not at all; one that is there is replaced.

        Raises:
            DataFileError: The storage refused.
        """
        if not self.is_local:
            self._ask(path, lambda: self.filesystem.pipe_file(self._asked(path), data))
            return
        target = Path(path)
        # Made by hand: what the tempfile module makes could not be read by others, as in a shared cache.
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        with self._naming(str(target.parent)):
            try:
                with temporary.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    def problem(self, path: str, what: str, error: BaseException) -> DataFileError:
        """Return the error that says what failed about a file; raise it from `cause(error)`."""
        return DataFileError(
            f"{self.display(path)} {what}: {without_secrets(str(error), *self._secrets) or type(error).__name__}"
        )

    def changed(self, path: str, difference: str) -> DataFileError:
        """Return the error for a file that is no longer what it was when it was planned."""
        return DataFileError(f"{self.display(path)} changed since it was planned: {difference}; scan the dataset again")

    def cause(self, error: BaseException) -> BaseException | None:
        """Return `error`, or None where showing it and what led to it would tell a secret."""
        return None if tells_a_secret(error, *self._secrets) else error

    @contextmanager
    def _naming(self, path: str) -> Iterator[None]:
        """Turn whatever the filesystem raises into a DataFileError that names `path`."""
        try:
            yield
        except LanewayError:
            raise
        except FileNotFoundError as error:
            message = f"{self.display(path)} does not exist"
            raise DataFileError(message) from self.cause(error)
        except PermissionError as error:
            raise self.problem(path, "can't be read, permission denied", error) from self.cause(error)
        except VersionError as error:
            raise self.changed(path, "its version (ETag or time) is another one") from self.cause(error)
        except ShortBodyError as error:
            raise self.problem(path, "is cut short", error) from self.cause(error)
        except GaveUpError as error:
            last = error.__cause__ or error
            what = "is cut short" if isinstance(last, ShortBodyError) else "can't be read"
            raise self.problem(path, f"{what} ({error.effort})", last) from self.cause(last)
        except Exception as error:  # noqa: BLE001 - every fsspec backend has exceptions of its own
            raise self.problem(path, "can't be read", error) from self.cause(error)

    def _walk(self, directory: str, above: Sequence[str]) -> Iterator[Entry]:
        with self._naming(directory):
            for entry in list(os.scandir(directory)):
                if entry.is_file():
                    facts = entry.stat()
                    yield Entry(entry.path, "file", facts.st_size, str(facts.st_mtime_ns))
                elif entry.is_dir() and not entry.name.startswith(("_", ".")):
                    real = os.path.realpath(entry.path) if entry.is_symlink() else f"{above[-1]}/{entry.name}"
                    # A link to a directory above would be entered for ever.
                    if real not in above:
                        yield from self._walk(entry.path, (*above, real))
                elif entry.is_symlink() and not entry.is_dir():
                    # A link to nothing is listed: if it is one of the data files, reading it is the error.
                    yield Entry(entry.path, "file", 0, "")

    def _children(self, directory: str) -> list[Entry]:
        """Return the files and directories in a directory; none if it is not there."""

        def ask() -> list[Entry]:
            try:
                if self.is_local:
                    return [
                        _local_entry(entry.path, entry.stat(follow_symlinks=entry.is_dir() or entry.is_file()))
                        for entry in list(os.scandir(directory))
                    ]
                self.filesystem.invalidate_cache()
                listed = self.filesystem.ls(directory, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
            return [self._entry(str(facts["name"]), facts) for facts in listed]

        return self._list(directory, ask)

    def _entry(self, path: str, facts: Mapping[str, Any]) -> Entry:
        size = facts.get("size")
        if size is None and facts["type"] == "file":
            size = self.size(path)
        return Entry(path, str(facts["type"]), int(size or 0), _version(facts))

    def _asked(self, path: str) -> str:
        return path + self._queries.get(path, "")

    @property
    def _secrets(self) -> tuple[object, ...]:
        return self._options, {} if self._given is None else self._given.storage_options


class RangeFile(io.RawIOBase):
    """A file of a storage, read by ranges: every read is one request for exactly these bytes."""

    def __init__(self, storage: Storage, path: str, size: int, version: str) -> None:
        """Make the file object; nothing is read before it is asked for."""
        super().__init__()
        self._version = version
        self._storage = storage
        self._path = path
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the offset of the next read."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset in bytes and return it."""
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Return up to `size` bytes, fewer only at the end of the file."""
        stop = self._size if size is None or size < 0 else min(self._at + size, self._size)
        data = self._storage.read_range(self._path, self._at, stop, self._version)
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - io's own signature takes any buffer
        """Fill `buffer` and return the number of bytes."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _answer(call: Callable[[], T], limit_s: float) -> T:
    """Return what a call returns, or raise what it raises, after so many seconds at the latest."""
    (answer,) = in_time([call], limit_s)
    if isinstance(answer, BaseException):
        raise answer
    return answer


def has_wildcards(path: str) -> bool:
    """Return whether a path may be a glob."""
    return any(wildcard in path for wildcard in _WILDCARDS)


def glob_root(pattern: str) -> str:
    """Return the deepest directory of a glob without wildcards."""
    parts = pattern.split("/")
    first = next(index for index, part in enumerate(parts) if has_wildcards(part))
    return "/".join(parts[:first]) or ("/" if pattern.startswith("/") else "")


def _read_at(path: str, start: int, length: int) -> bytes | None:
    """Return what is there to read of a local file, without a file object: that takes longer than the reading."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(handle, length, start)
        finally:
            os.close(handle)
    except OSError:
        return None


def _local_entry(path: str, facts: os.stat_result) -> Entry:
    kind = "directory" if stat.S_ISDIR(facts.st_mode) else "other"
    if stat.S_ISREG(facts.st_mode) or stat.S_ISLNK(facts.st_mode):
        kind = "file"
    return Entry(path, kind, facts.st_size, str(facts.st_mtime_ns))


def _version(facts: Mapping[str, Any]) -> str:
    """Return what the facts about a file say of its version; empty if nothing."""
    value = next((facts[key] for key in _VERSION_KEYS if facts.get(key)), "")
    if isinstance(value, datetime):
        value = value.timestamp()
    return str(round(value * 1e9) if isinstance(value, float) else value)


def _is_walked(filesystem: AbstractFileSystem) -> bool:
    """Return whether `find` lists one directory after the other, as it does unless a filesystem has its own."""
    while isinstance(filesystem, DirFileSystem):
        filesystem = filesystem.fs
    if isinstance(filesystem, ArrowFSWrapper):
        return False
    if filesystem.async_impl:
        return type(filesystem)._find is AsyncFileSystem._find  # noqa: SLF001 - what `find` calls
    return type(filesystem).find is fsspec.AbstractFileSystem.find


def _takes_prefix(filesystem: AbstractFileSystem) -> bool:
    """Return whether `find` can ask for names that begin with a prefix, as those of S3 and GCS can."""
    find = type(filesystem)._find if filesystem.async_impl else type(filesystem).find  # noqa: SLF001 - what `find` calls
    return "prefix" in inspect.signature(find).parameters


def _as_fsspec(filesystem: FileSystem | None) -> AbstractFileSystem | None:
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        return LocalFileSystem()
    if isinstance(filesystem, pyarrow.fs.FileSystem):
        return ArrowFSWrapper(filesystem)
    if filesystem is None or isinstance(filesystem, fsspec.AbstractFileSystem):
        return filesystem
    message = f"filesystem is a {type(filesystem).__name__}: give a filesystem of fsspec or of pyarrow.fs"
    raise TypeError(message)


def _fetch_missing(
    client: RangeClient, wanted: Sequence[Request], found: dict[int, Data], limit_s: float
) -> BaseException | None:
    """Fetch what is wanted and not found yet, and return what went wrong: what won't pass, if something won't."""
    missing = [index for index in range(len(wanted)) if index not in found]
    failed: list[BaseException] = []
    for index, data in zip(missing, client.fetch([wanted[index] for index in missing], limit_s), strict=True):
        if isinstance(data, BaseException):
            failed.append(data)
        else:
            found[index] = data
    return next((error for error in failed if not is_transient(error)), failed[0] if failed else None)


def _differ(version: str, other: str) -> bool:
    """Return whether two versions of one file are known to differ: both are ETags, or both are times."""
    if version.isdigit() != other.isdigit() or not other:
        return False
    if version.isdigit():
        # Some servers tell milliseconds when they list, and seconds when they are asked for one object.
        return int(version) // 10**9 != int(other) // 10**9
    return version.strip('"') != other.strip('"')


def _with_timeouts(url: str, options: Mapping[str, Any], policy: RetryPolicy) -> dict[str, Any]:
    """Return storage options that tell s3fs how long to wait, and not to try again what is tried again here.

    What the user gave stays as it is.
    """
    if not url.startswith(("s3://", "s3a://")):
        return dict(options)
    ours = {
        "connect_timeout": policy.connect_timeout_s,
        "read_timeout": policy.read_timeout_s,
        "max_pool_connections": _CONNECTIONS,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
    }
    return {**options, "config_kwargs": {**ours, **(options.get("config_kwargs") or {})}}
