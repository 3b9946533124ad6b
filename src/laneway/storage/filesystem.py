"""The storage of a dataset: a filesystem for each process, paths, calls with retries, errors without secrets."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, TypeVar, cast, final

import fsspec
import pyarrow.fs
from fsspec.core import split_protocol, url_to_fs
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem

from laneway.errors import DataFileError, LanewayError
from laneway.metering import current_meter
from laneway.storage.clients import RangeClient, client_for
from laneway.storage.deadlines import call_within
from laneway.storage.hub import HubPath, commit_of, is_fixed, is_hub
from laneway.storage.ranges import ShortBodyError, VersionError
from laneway.storage.redaction import redact, reveals_secret
from laneway.storage.retries import GaveUpError, RetryPolicy, retry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fsspec import AbstractFileSystem

    T = TypeVar("T")
    FileSystem: TypeAlias = AbstractFileSystem | pyarrow.fs.FileSystem
    Access: TypeAlias = Literal["read", "written"]

_MAX_CONNECTIONS: Final = 32
_log = logging.getLogger(__name__)

_kept_alive: dict[int, object] = {}
"""Objects of a parent process that a forked child must not destroy: closing a connection there also removes it from the
parent's event loop, because both share one epoll instance, and fsspec clears its instance cache in a child."""


class _Connection(NamedTuple):
    """The filesystem of one process."""

    pid: int
    """Process that created it."""
    filesystem: AbstractFileSystem
    client: RangeClient
    """Fetches ranges from the filesystem."""


@final
class Storage:
    """A filesystem with a root directory that holds data files.

    Each process creates its own filesystem. It never crosses a fork or a pickle, which would break the clients of
    object stores. A filesystem given by the user is copied for another process by pickling it there. Messages must
    pass every path through `redact`, which removes credentials.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        filesystem: FileSystem | None = None,
        storage_options: Mapping[str, Any] | None = None,
        retries: RetryPolicy | None = None,
    ) -> None:
        """Create the filesystem of `source`, without accessing any file.

        Args:
            source: A path, absolute or relative, or any URL that fsspec supports; it becomes `root`.
            filesystem: The filesystem of the path `source`; None: the one that the URL names.
            storage_options: Arguments for the filesystem of a URL: credentials, endpoints.
            retries: Limits of the retries; None: `RetryPolicy()`.

        Raises:
            ValueError: Both `filesystem` and `storage_options` are given, or the protocol of the URL is unknown.
            TypeError: An argument has the wrong type.
        """
        if not isinstance(source, (str, os.PathLike)):
            message = f"a path or URL must be a string or a path, not {source!r}"
            raise TypeError(message)
        if storage_options is not None and not isinstance(storage_options, Mapping):
            message = f"storage_options must be a mapping, not a {type(storage_options).__name__}"
            raise TypeError(message)
        wrong = [name for name in storage_options or {} if not isinstance(name, str)]
        if wrong:
            message = f"storage_options must have names of arguments, which are strings, not {wrong[0]!r}"
            raise TypeError(message)
        if retries is not None and not isinstance(retries, RetryPolicy):
            message = f"retries must be a RetryPolicy or None, not {retries!r}"
            raise TypeError(message)
        if filesystem is not None and storage_options:
            message = "storage_options configure the filesystem of a URL: give them or filesystem, not both"
            raise ValueError(message)
        self.retries = retries or RetryPolicy()
        """Limits of the retries of every call."""
        self._url = os.fspath(source)
        self._options = dict(storage_options or {})
        self._arguments = _add_timeouts(self._url, self._options, self.retries)
        if filesystem is None and isinstance(source, os.PathLike) and "::" in self._url:
            filesystem = LocalFileSystem()  # a path, which fsspec would take for a chain of URLs
        self._given = _as_fsspec(filesystem)
        self._connection: _Connection | None = None
        if self._given is not None:
            self._connection = _Connection(os.getpid(), self._given, client_for(self._given))
        self._queries: dict[str, str] = {}
        self.is_local = isinstance(self.filesystem, LocalFileSystem)
        """Whether files can be opened and memory-mapped by path, without the filesystem."""
        self.root = self.path_of(source)
        """The path of `source`, as the filesystem understands it."""

    @property
    def filesystem(self) -> AbstractFileSystem:
        """The filesystem of this process."""
        return self._connect().filesystem

    @property
    def client(self) -> RangeClient:
        """The client of this process that fetches ranges."""
        return self._connect().client

    def _connect(self) -> _Connection:
        """Return the connection of this process; create it on first use."""
        connection = self._connection
        if connection is None or connection.pid != os.getpid():
            if connection is not None and not connection.client.survives_fork:
                message = (
                    "obstore does not work in a process that was forked after its use: start workers with "
                    "multiprocessing_context='spawn' or 'forkserver', or read through s3fs or pyarrow.fs"
                )
                raise DataFileError(message)
            if self._given is None:
                filesystem = url_to_fs(self._url, **self._arguments)[0]
            else:
                # Pickling also rebuilds wrapped and nested filesystems, each from its own arguments.
                filesystem = pickle.loads(pickle.dumps(self._given))  # noqa: S301 - pickled on this line
            if connection is not None:
                _kept_alive[id(connection)] = connection
            connection = self._connection = _Connection(os.getpid(), filesystem, client_for(filesystem))
            if self._given is None:
                _kept_alive[id(filesystem)] = filesystem
        return connection

    def __getstate__(self) -> dict[str, Any]:
        """Drop the live filesystem."""
        return {**self.__dict__, "_connection": None}

    def __repr__(self) -> str:
        return f"Storage({self.redact(self.root)!r})"

    # -- Paths --------------------------------------------------------------------------------------------------------

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
            path = cast("str", self._given._strip_protocol(text))  # noqa: SLF001 - fsspec has no public name for it
        else:
            filesystem, path = url_to_fs(text, **self._arguments)
            if filesystem != self.filesystem:
                message = (
                    f"{redact(self._url)} and {redact(text)} are on different filesystems: read them as two datasets"
                )
                raise ValueError(message)
        if self.is_local:
            return os.path.normpath(path)
        mark, query = "", ""
        if path.startswith(("http://", "https://")):
            path, mark, query = path.partition("?")
        if mark:
            # Queries hold signatures, and paths end up in states and messages: keep them separate.
            self._queries[path] = mark + query
        return path if path.strip("/") == "" else path.rstrip("/")

    def request_path(self, path: str) -> str:
        """Return the path to send in a request: with the query of its URL, which may be a signature."""
        return path + self._queries.get(path, "")

    def beside(self, source: str | os.PathLike[str]) -> Storage:
        """Return the storage of a local path or URL, with the options of this one if the protocol is the same."""
        protocol = split_protocol(os.fspath(source))[0]
        mine = self.filesystem.protocol
        if protocol and not self.is_local and protocol in ((mine,) if isinstance(mine, str) else mine):
            return Storage(source, self._given, self._options, self.retries)
        return Storage(source, retries=self.retries)

    def join(self, relative: str) -> str:
        """Return the path of a file from its path relative to the root."""
        return relative if self.root == "" else f"{self.root.rstrip('/')}/{relative}"

    @property
    def url(self) -> str:
        """The root as a URL, for a library that reads by itself; of a local directory, its path."""
        return self.root if self.is_local else cast("str", self.filesystem.unstrip_protocol(self.root))

    @property
    def options(self) -> Mapping[str, Any]:
        """The arguments of the filesystem, for the same purpose. They hold secrets."""
        return self._options

    def redact(self, path: str) -> str:
        """Return a path for messages: a URL where the storage has one, without userinfo and query."""
        if not self.is_local and self._given is None and "://" not in path:
            path = cast("str", self.filesystem.unstrip_protocol(path))
        return redact(path)

    def pinned(self, paths: Sequence[str]) -> list[str]:
        """Return paths with the commits that their revisions are now: on the Hugging Face Hub, one request for each.

        Raises:
            DataFileError: There is no such repository or revision, or no access to it.
        """
        if not is_hub(self.filesystem):
            return [*paths]
        found: dict[tuple[str, str, str | None], str] = {}
        pinned = []
        for path in paths:
            place = HubPath.parse(path)
            if place is None:
                # A bucket, or no repository at all, which the filesystem says.
                pinned.append(path)
                continue
            if place[:3] not in found:
                found[place[:3]] = self.call(path, partial(commit_of, self.filesystem, place))
            pinned.append(place.at(found[place[:3]]))
        return pinned

    @property
    def commit(self) -> str | None:
        """The commit of the Hugging Face Hub that the root is in; None: in none, or in several."""
        place = HubPath.parse(self.root) if is_hub(self.filesystem) else None
        return place.revision if place is not None and place.is_fixed else None

    def forget_listings(self, path: str) -> None:
        """Have the filesystem request anew what it remembers, unless nothing at a path can change."""
        if not is_fixed(self.filesystem, path):
            self.filesystem.invalidate_cache()

    # -- Calls --------------------------------------------------------------------------------------------------------

    def retry(self, path: str, attempt: Callable[[float], T], access: Access = "read") -> T:
        """Call a function with retries, and return its result.

        Args:
            path: The path that errors and the log name.
            attempt: Takes its time limit in seconds.
            access: What is done to the path.

        Raises:
            DataFileError: The last attempt failed.
        """
        with self.translate_errors(path, access):
            return retry(attempt, self.retries, on_retry=partial(self._log_retry, path, access))

    def call(self, path: str, function: Callable[[], T], timeout_s: float | None = None, access: Access = "read") -> T:
        """Call a function that has no time limit of its own, with retries, and return its result.

        Args:
            path: The path that errors and the log name.
            function: Sends the request.
            timeout_s: Time limit of each attempt on remote storage, in seconds; None: as `retries` says.
            access: What is done to the path.

        Raises:
            DataFileError: The last attempt failed.
        """

        def attempt(limit_s: float) -> T:
            # A local disk does not stall, so the call needs no thread.
            return function() if self.is_local else call_within(function, limit_s if timeout_s is None else timeout_s)

        return self.retry(path, attempt, access)

    def _log_retry(self, path: str, access: Access, error: BaseException, next_step: str) -> None:
        """Log a retry, so that users can see why a job waits, and count it."""
        if (meter := current_meter()) is not None:
            meter.count_retry()
        _log.warning("%s; %s", self.error_for(path, f"could not be {access}", error), next_step)

    # -- Errors -------------------------------------------------------------------------------------------------------

    def error_for(self, path: str, problem: str, error: BaseException) -> DataFileError:
        """Return an error that names a file, a problem and its cause; raise it from `cause(error)`."""
        return DataFileError(
            f"{self.redact(path)} {problem}: {redact(str(error), *self._secrets) or type(error).__name__}"
        )

    def change_error(self, path: str, difference: str) -> DataFileError:
        """Return the error for a file that changed since it was planned."""
        return DataFileError(f"{self.redact(path)} changed since it was planned: {difference}; scan the dataset again")

    def cause(self, error: BaseException) -> BaseException | None:
        """Return `error`, or None if its traceback would reveal a secret."""
        return None if reveals_secret(error, *self._secrets) else error

    @contextmanager
    def translate_errors(self, path: str, access: Access = "read") -> Iterator[None]:
        """Translate any error of the filesystem into a DataFileError that names `path` and what was done to it."""
        try:
            yield
        except LanewayError:
            raise
        except FileNotFoundError as error:
            if access == "written":
                raise self.error_for(path, "can't be written, its directory is missing", error) from self.cause(error)
            message = f"{self.redact(path)} does not exist"
            raise DataFileError(message) from self.cause(error)
        except PermissionError as error:
            raise self.error_for(path, f"can't be {access}, permission denied", error) from self.cause(error)
        except VersionError as error:
            raise self.change_error(path, "its version (ETag or time) is different") from self.cause(error)
        except ShortBodyError as error:
            raise self.error_for(path, "is truncated", error) from self.cause(error)
        except GaveUpError as error:
            last = error.__cause__ or error
            problem = "is truncated" if isinstance(last, ShortBodyError) else f"can't be {access}"
            raise self.error_for(path, f"{problem} ({error.effort})", last) from self.cause(last)
        except Exception as error:  # noqa: BLE001 - every fsspec backend has exceptions of its own
            raise self.error_for(path, f"can't be {access}", error) from self.cause(error)

    @property
    def _secrets(self) -> tuple[object, ...]:
        return self._options, {} if self._given is None else self._given.storage_options


def _as_fsspec(filesystem: FileSystem | None) -> AbstractFileSystem | None:
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        return LocalFileSystem()
    if isinstance(filesystem, pyarrow.fs.FileSystem):
        return ArrowFSWrapper(filesystem)
    if filesystem is None or isinstance(filesystem, fsspec.AbstractFileSystem):
        return filesystem
    message = f"filesystem is a {type(filesystem).__name__}: give a filesystem of fsspec or of pyarrow.fs"
    raise TypeError(message)


def _add_timeouts(url: str, options: Mapping[str, Any], policy: RetryPolicy) -> dict[str, Any]:
    """Add timeouts for s3fs to storage options, and disable its retries in favour of ours.

    Options that the user gave are left unchanged.
    """
    if not url.startswith(("s3://", "s3a://")):
        return dict(options)
    ours = {
        "connect_timeout": policy.connect_timeout_s,
        "read_timeout": policy.read_timeout_s,
        "max_pool_connections": _MAX_CONNECTIONS,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
    }
    return {**options, "config_kwargs": {**ours, **(options.get("config_kwargs") or {})}}
