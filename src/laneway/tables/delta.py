"""Delta tables: the files, partition values, statistics and deletion vectors that the log of a table lists."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, final
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laneway.errors import DataFileError
from laneway.storage.object_stores import for_object_store, for_s3fs
from laneway.storage.redaction import redact
from laneway.tables.base import Bounds, Catalog, TableFiles, at_version
from laneway.tables.columns import FIELD_ID, plain, rename_fields

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deltalake import DeltaTable
    from numpy.typing import NDArray

PREFIX: Final = "delta://"
"""How the URL of a Delta table begins: `delta://path@version`, where the path may be a URL itself."""
_FEATURES: Final = frozenset(
    {"columnMapping", "deletionVectors", "domainMetadata", "timestampNtz", "typeWidening", "typeWidening-preview"}
    | {"v2Checkpoint", "vacuumProtocolCheck", "variantType"}
)
"""What a reader must know of to read a table, and this one does."""
_PHYSICAL_NAME: Final = b"delta.columnMapping.physicalName"
_ID: Final = b"delta.columnMapping.id"


@final
class DeltaCatalog(Catalog):
    """The version of a Delta table that was loaded."""

    def __init__(self, table: DeltaTable) -> None:
        """Take the table as it is loaded, which must stay at its version.

        Args:
            table: The table, at the version to read.

        Raises:
            DataFileError: It needs a feature that this reader doesn't have, or was loaded without its files.
        """
        self._table = table
        self._uri = table.table_uri.rstrip("/")
        missing = sorted({*(table.protocol().reader_features or ())} - _FEATURES)
        if missing:
            message = f"{redact(self._uri)} needs the reader features {', '.join(missing)}, which laneway doesn't have"
            msg = f"{message}: rewrite the table without them"
            raise DataFileError(msg)
        self._version = table.version()
        self._id = table.metadata().id
        self._fields = pa.schema(table.schema())  # type: ignore[arg-type]  # by the protocol of Arrow
        self.storage_options = for_s3fs(table._storage_options) if self._uri.startswith("s3") else None  # noqa: SLF001

    @property
    def root(self) -> str:
        """See Catalog."""
        return self._uri.removeprefix("file://") if self._uri.startswith("file://") else self._uri

    @property
    def version(self) -> str:
        """See Catalog."""
        return f"version {self._version} of the Delta table {self._id}"

    @cached_property
    def schema(self) -> pa.Schema:
        """See Catalog."""
        return plain(self._fields)

    @cached_property
    def _actions(self) -> Any:  # noqa: ANN401 - the values of a table of pyarrow may be null for its stubs
        """What the log says of each file."""
        try:
            return pa.table(self._table.get_add_actions(flatten=True))
        except Exception as error:  # noqa: BLE001 - those of the library have no common base
            message = f"the log of {redact(self._uri)} can't be read: {redact(str(error))}"
            raise DataFileError(message) from None

    @cached_property
    def _paths(self) -> list[str]:
        # As the log has them, which is how URLs are written.
        return [unquote(path) for path in self._actions["path"].to_pylist()]

    def files(self) -> TableFiles:
        """See Catalog."""
        names = self._table.metadata().partition_columns
        constants = {name: self._actions[f"partition.{name}"].to_pylist() for name in names}
        return TableFiles(paths=self._paths, sizes=self._actions["size_bytes"].to_pylist(), constants=constants)

    @cached_property
    def _mode(self) -> str:
        return self._table.metadata().configuration.get("delta.columnMapping.mode") or "none"

    def rename(self, schema: pa.Schema) -> pa.Schema:
        """See Catalog: files have other names where the columns of the table were renamed."""
        if self._mode == "none":
            return schema
        if self._mode == "id":
            return rename_fields(
                schema, self._fields, lambda _, field: _metadata(field, FIELD_ID), lambda field: _metadata(field, _ID)
            )
        return rename_fields(
            schema, self._fields, lambda path, _: path[-1].encode(), lambda field: _metadata(field, _PHYSICAL_NAME)
        )

    def bounds(self, name: str) -> Bounds | None:
        """See Catalog."""
        actions, num_files = self._actions, self._actions.num_rows
        if f"partition.{name}" in actions.column_names:
            values = _one(actions[f"partition.{name}"])
            is_null = np.asarray(values.is_null())
            return Bounds(values, values, is_null, is_null)
        if f"min.{name}" not in actions.column_names or f"max.{name}" not in actions.column_names:
            return None
        least, greatest = (_one(actions[f"{kind}.{name}"]) for kind in ("min", "max"))
        if pa.types.is_timestamp(greatest.type):
            # The log has milliseconds, rounded down.
            unit = pa.scalar(1, pa.duration("ms")).cast(pa.duration(greatest.type.unit))
            greatest = pc.add(greatest, unit)
        nulls = actions[f"null_count.{name}"] if f"null_count.{name}" in actions.column_names else None
        if nulls is None:
            return Bounds(least, greatest, np.ones(num_files, bool), np.zeros(num_files, bool))
        num_nulls = np.asarray(pc.fill_null(nulls, -1))
        num_rows = np.asarray(pc.fill_null(actions["num_records"], -2))
        return Bounds(least, greatest, num_nulls != 0, num_nulls == num_rows)

    def deleted_rows(self, indices: Sequence[int]) -> Mapping[int, NDArray[np.int64]]:
        """See Catalog: those of deletion vectors."""
        if "deletionVectors" not in (self._table.protocol().reader_features or ()):
            return {}
        place_of, wanted = {path: place for place, path in enumerate(self._paths)}, {*indices}
        found: dict[int, NDArray[np.int64]] = {}
        for batch in self._table.deletion_vectors():
            vectors: Any = pa.record_batch(batch)
            for uri, keeps in zip(vectors["filepath"].to_pylist(), vectors["selection_vector"], strict=True):
                path = uri.removeprefix(f"{self._uri}/")
                index = place_of.get(unquote(path), place_of.get(path))
                if index is None:
                    message = f"{redact(uri)} has a deletion vector, but the log doesn't list this file"
                    raise DataFileError(message)
                if index in wanted:
                    found[index] = np.flatnonzero(~keeps.values.to_numpy(zero_copy_only=False)).astype(np.int64)
        return found


def open_delta(url: str, storage_options: Mapping[str, Any] | None) -> DeltaCatalog:
    """Return the table of a URL such as `delta://path@version`; without a version, the latest one.

    Raises:
        DataFileError: There is no such table, or no such version of it.
    """
    from deltalake import DeltaTable  # noqa: PLC0415 - only where it is used
    from deltalake.exceptions import DeltaError  # noqa: PLC0415

    path, version = at_version(url.removeprefix(PREFIX))
    try:
        options = for_object_store(storage_options) if storage_options else None
        return DeltaCatalog(DeltaTable(path, version=version, storage_options=options))
    except (DeltaError, OSError, ValueError) as error:
        message = f"{redact(path)} can't be opened as a Delta table: {redact(str(error), storage_options)}"
        raise DataFileError(message) from None


def _metadata(field: pa.Field[Any], key: bytes) -> bytes | None:
    return (field.metadata or {}).get(key)


def _one(column: Any) -> Any:  # noqa: ANN401 - a column, and its array
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
