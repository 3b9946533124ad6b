"""Samples of WebDataset: consecutive members of tar files whose names are equal up to the first dot."""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING, Any, Final, final

import pyarrow as pa

from laneway.core.files import digest
from laneway.errors import DataFileError, SchemaMismatchError
from laneway.storage.entries import get_entry
from laneway.storage.filesystem import Storage
from laneway.storage.listing import find_files, glob_files, has_wildcards

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from laneway.storage.entries import Entry

SUFFIX: Final = ".tar"
_KEY: Final = "__key__"
_TEXT: Final = frozenset({"txt", "text", "caption", "json", "cls"})
"""Extensions whose members are UTF-8 text; the others are bytes."""


@final
class TarSamples:
    """The samples of tar files, in the order of the sorted paths."""

    def __init__(self, source: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> None:
        """Find the files, and the extensions of the members of the first one.

        Raises:
            DataFileError: There is no tar file, or the first one is damaged or has no sample.
        """
        self._storage = Storage(source, storage_options=storage_options)
        self._files = sorted(self._find(), key=lambda entry: entry.path)
        if not self._files:
            message = f"no tar file found in {self._storage.redact(self._storage.root)}"
            raise DataFileError(message)
        names = dict.fromkeys(extension for _, extension, _ in self._members(self._files[0], contents=False))
        if not names:
            message = f"{self._storage.redact(self._files[0].path)} has no sample: its members have no extension"
            raise DataFileError(message)
        types = {name: pa.string() if name.rpartition(".")[2] in _TEXT else pa.binary() for name in names}
        self.schema = pa.schema([(_KEY, pa.string()), *types.items()])
        """The key of a sample, and a column for each extension."""

    @property
    def identity(self) -> str:
        """Digest of the names and sizes of the files."""
        parts = [f"{entry.path.rpartition('/')[2]} {entry.size}".encode() for entry in self._files]
        return digest(*parts)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the samples as rows of `schema`.

        Raises:
            DataFileError: A file is damaged or truncated, or text is not UTF-8.
            SchemaMismatchError: A sample has a member with an extension that the first file doesn't have.
        """
        for entry in self._files:
            row: dict[str, Any] = {}
            for key, extension, data in self._members(entry, contents=True):
                if row and (row[_KEY] != key or extension in row):
                    yield row
                    row = {}
                row.setdefault(_KEY, key)
                row[extension] = self._value(entry, key, extension, data)
            if row:
                yield row

    def _value(self, entry: Entry, key: str, extension: str, data: bytes) -> str | bytes:
        index = self.schema.get_field_index(extension)
        where = f"{self._storage.redact(entry.path)} has the member {key}.{extension}"
        if index < 0:
            others = ", ".join(self.schema.names[1:])
            message = f"{where}, but the first file only has {others}: convert such files by themselves"
            raise SchemaMismatchError(message)
        if not pa.types.is_string(self.schema.field(index).type):
            return data
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            message = f"{where}, which is not UTF-8: {error}"
            raise DataFileError(message) from error

    def _find(self) -> list[Entry]:
        storage, root = self._storage, self._storage.root
        if has_wildcards(root):
            found = glob_files(storage, root)
        else:
            entry = get_entry(storage, root)
            found = [entry] if entry is not None and entry.kind == "file" else find_files(storage, root)
        return [entry for entry in found if entry.path.endswith(SUFFIX)]

    def _members(self, entry: Entry, *, contents: bool) -> Iterator[tuple[str, str, bytes]]:
        """Yield key, extension and content of each member of a file."""
        storage = self._storage
        with (
            storage.translate_errors(entry.path),
            storage.filesystem.open(storage.request_path(entry.path)) as file,
            tarfile.open(fileobj=file, mode="r|") as tar,
        ):
            for member in tar:
                directory, slash, name = member.name.rpartition("/")
                key, dot, extension = name.partition(".")
                if not member.isfile() or not key or not dot:
                    continue
                source = tar.extractfile(member) if contents else None
                data = source.read() if source is not None else b""
                if contents and len(data) != member.size:
                    message = f"{storage.redact(entry.path)} is truncated in its member {member.name}"
                    raise DataFileError(message)
                yield directory + slash + key, extension, data
