"""Iceberg tables: the files, partition values, statistics and deletes that the metadata of a snapshot lists."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, final
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
from pyiceberg.catalog import load_catalog
from pyiceberg.conversions import from_bytes
from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io.fsspec import FsspecFileIO

# Private: pyiceberg has no public way to read deletes. A test fails if they change.
from pyiceberg.io.pyarrow import _read_all_delete_files, schema_to_pyarrow
from pyiceberg.table import DataScan, Table
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import (
    BinaryType,
    DateType,
    DoubleType,
    FixedType,
    FloatType,
    IntegerType,
    LongType,
    PrimitiveType,
    TimestampType,
    TimestamptzType,
    UUIDType,
)

from laneway.errors import DataFileError, SchemaMismatchError
from laneway.storage.redaction import redact
from laneway.tables.base import Bounds, Catalog, TableFiles
from laneway.tables.columns import FIELD_ID, plain, rename_fields

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import FileScanTask
    from pyiceberg.table.name_mapping import MappedField

PREFIX: Final = "iceberg://"
"""How the URL of an Iceberg table begins: `iceberg://catalog/namespace.table@snapshot`."""
_WITHOUT_ORDER: Final = (BinaryType, FixedType, UUIDType)
"""Types whose bounds are not compared as Arrow compares values."""
_NUMBERS: Final[Mapping[type, np.dtype[Any]]] = {
    IntegerType: np.dtype("<i4"),
    DateType: np.dtype("<i4"),
    LongType: np.dtype("<i8"),
    TimestampType: np.dtype("<i8"),
    TimestamptzType: np.dtype("<i8"),
    FloatType: np.dtype("<f4"),
    DoubleType: np.dtype("<f8"),
}
"""Type -> how its bounds are encoded: if all of them are of this length, they are decoded together."""
_WITH_URLS: Final = {"file", ""}


@final
class IcebergCatalog(Catalog):
    """A snapshot of an Iceberg table."""

    def __init__(self, scan: DataScan) -> None:
        """Take the snapshot of a scan.

        Args:
            scan: A scan of all rows and columns of one snapshot.

        Raises:
            DataFileError: The table doesn't have this snapshot.
            ValueError: It has a filter, some of the columns, or a limit.
        """
        given = [
            name
            for name, is_given in (
                ("row_filter", not isinstance(scan.row_filter, AlwaysTrue)),
                ("selected_fields", scan.selected_fields != ("*",)),
                ("limit", scan.limit is not None),
            )
            if is_given
        ]
        if given:
            message = (
                f"the scan of the table has {', '.join(given)}: pass filter= or columns= to the dataset, or take()"
            )
            raise ValueError(message)
        self._scan = scan
        self._metadata = scan.table_metadata
        snapshot = scan.snapshot()
        if snapshot is None and scan.snapshot_id is not None:
            message = f"the table has no snapshot {scan.snapshot_id}: it may have expired"
            raise DataFileError(message)
        self._snapshot_id = None if snapshot is None else snapshot.snapshot_id
        self._fields = schema_to_pyarrow(scan.projection())

    @property
    def root(self) -> str:
        """See Catalog."""
        return _path(self._metadata.location.rstrip("/"))

    @cached_property
    def storage_options(self) -> Mapping[str, Any] | None:  # type: ignore[override]  # computed only if it is needed
        """See Catalog: those that the catalog of the table gave to pyiceberg."""
        scheme = urlsplit(self._metadata.location).scheme
        if scheme in _WITH_URLS:
            return None
        if "s3.signer" in self._scan.io.properties:
            message = "the catalog signs each request to the files of the table: pass filesystem= or storage_options="
            raise DataFileError(message)
        try:
            options: Mapping[str, Any] = FsspecFileIO(self._scan.io.properties).get_fs(scheme).storage_options
        except (ImportError, ValueError) as error:
            message = f"pyiceberg has no filesystem for {scheme}:// ({error}): pass filesystem= or storage_options="
            raise DataFileError(message) from error
        return options

    @property
    def version(self) -> str:
        """See Catalog."""
        return f"snapshot {self._snapshot_id} of the Iceberg table {self._metadata.table_uuid}"

    @cached_property
    def schema(self) -> pa.Schema:
        """See Catalog."""
        return plain(self._fields)

    @cached_property
    def _tasks(self) -> list[FileScanTask]:
        try:
            return [*self._scan.plan_files()]
        except Exception as error:  # noqa: BLE001 - of the library, of its catalogs and of its storages
            message = f"{self.version} can't be planned: {redact(str(error), dict(self._scan.io.properties))}"
            raise DataFileError(message) from None

    @property
    def _files(self) -> list[DataFile]:
        return [task.file for task in self._tasks]

    def files(self) -> TableFiles:
        """See Catalog."""
        files, below = self._files, f"{self._metadata.location.rstrip('/')}/"
        for each in files:
            if each.file_format.value != "PARQUET":
                message = (
                    f"{redact(each.file_path)} is of format {each.file_format.value}: laneway reads tables of Parquet"
                )
                msg = f"{message} files only; rewrite the table"
                raise DataFileError(msg)
        return TableFiles(
            paths=[_path(each.file_path.removeprefix(below)) for each in files],
            sizes=[each.file_size_in_bytes for each in files],
            constants=self._constants(),
        )

    def _constants(self) -> dict[str, list[Any]]:
        """Return the columns that files may lack because their values are those of a partition, or a default."""
        found: dict[str, list[Any]] = {}
        for field in self._scan.projection().fields:
            values = self._partition_values(field.field_id)
            default = field.initial_default
            if default is not None:
                values = (
                    [default] * len(self._tasks) if values is None else [default if v is None else v for v in values]
                )
            if values is not None:
                found[field.name] = values
        return found

    def _partition_values(self, field_id: int) -> list[Any] | None:
        """Return the value of a column for each file, None where its partitions don't tell; None: none tells."""
        specs = self._metadata.specs()
        places = {
            spec_id: next(
                (
                    place
                    for place, each in enumerate(spec.fields)
                    if each.source_id == field_id and isinstance(each.transform, IdentityTransform)
                ),
                None,
            )
            for spec_id, spec in specs.items()
        }
        if all(place is None for place in places.values()):
            return None
        found = []
        for each in self._files:
            place = places[each.spec_id or 0]
            found.append(None if place is None else each.partition[place])
        return found

    def rename(self, schema: pa.Schema) -> pa.Schema:
        """See Catalog: fields have numbers, which stay the same when they are renamed, moved or made wider."""
        mapping = self._metadata.name_mapping()
        if not any(FIELD_ID in (field.metadata or {}) for field in schema):
            if mapping is None:
                message = (
                    f"a file of {self.version} doesn't number its columns, and the table has no "
                    "schema.name-mapping.default that says which are which: set one, or rewrite the file"
                )
                raise SchemaMismatchError(message)
            known = [*mapping]
            return rename_fields(schema, self._fields, lambda path, _: _mapped_id(known, path), _field_id)
        return rename_fields(schema, self._fields, lambda _, field: _field_id(field), _field_id)

    def bounds(self, name: str) -> Bounds | None:
        """See Catalog."""
        field = self._scan.projection().find_field(name)
        type_ = field.field_type
        if not isinstance(type_, PrimitiveType) or isinstance(type_, _WITHOUT_ORDER):
            return None
        number, files, arrow_type = field.field_id, self._files, self._fields.field(name).type
        partition = self._partition_values(number) or [None] * len(files)
        least = [(each.lower_bounds or {}).get(number) for each in files]
        greatest = [(each.upper_bounds or {}).get(number) for each in files]
        nulls = [(each.null_value_counts or {}).get(number) for each in files]
        return Bounds(
            _decoded_all(type_, least, partition, arrow_type),
            _decoded_all(type_, greatest, partition, arrow_type),
            np.array([count != 0 for count in nulls], bool),
            np.array([count == each.record_count for count, each in zip(nulls, files, strict=True)], bool),
        )

    def deleted_rows(self, indices: Sequence[int]) -> Mapping[int, NDArray[np.int64]]:
        """See Catalog: those of position deletes and deletion vectors."""
        tasks = [self._tasks[index] for index in indices]
        if not any(task.delete_files for task in tasks):
            return {}
        try:
            deleted = _read_all_delete_files(self._scan.io, tasks)
        except Exception as error:  # noqa: BLE001 - of the library, of its catalogs and of its storages
            message = (
                f"the deletes of {self.version} can't be read: {redact(str(error), dict(self._scan.io.properties))}"
            )
            raise DataFileError(message) from None
        found: dict[int, NDArray[np.int64]] = {}
        for index, task in zip(indices, tasks, strict=True):
            columns = deleted.get(task.file.file_path, []) if task.delete_files else []
            if columns:
                found[index] = np.concatenate([np.asarray(each.to_numpy(), np.int64) for each in columns])
        return found


def iceberg_catalog(table: Table | DataScan) -> IcebergCatalog:
    """Return the current snapshot of a table, or that of a scan.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(table, Table):
        return IcebergCatalog(table.scan())
    if isinstance(table, DataScan):
        return IcebergCatalog(table)
    message = f"source is a {type(table).__name__}: give a table of pyiceberg, or a scan of a snapshot of it"
    raise TypeError(message)


def open_iceberg(url: str) -> IcebergCatalog:
    """Return the snapshot of a URL such as `iceberg://catalog/namespace.table@snapshot`; without one, the current one.

    The catalog is one that pyiceberg knows: from its configuration file, or the environment.

    Raises:
        DataFileError: There is no such catalog, table or snapshot.
    """
    name, _, rest = url.removeprefix(PREFIX).partition("/")
    identifier, _, snapshot = rest.partition("@")
    try:
        table = load_catalog(name).load_table(identifier)
    except (NoSuchNamespaceError, NoSuchTableError, ValueError, OSError) as error:
        message = f"{redact(url)} can't be opened as an Iceberg table: {redact(str(error))}"
        raise DataFileError(message) from None
    if not snapshot:
        return IcebergCatalog(table.scan())
    found = table.snapshot_by_id(int(snapshot)) if snapshot.isdigit() else table.snapshot_by_name(snapshot)
    if found is None:
        message = f"{redact(url)} has no snapshot {snapshot}: it may have expired"
        raise DataFileError(message)
    return IcebergCatalog(table.scan(snapshot_id=found.snapshot_id))


def _path(location: str) -> str:
    """Return a location as a path if it is local. Unlike URLs, those of Iceberg are not quoted."""
    return location.removeprefix("file://") if location.startswith("file://") else location.removeprefix("file:")


def _field_id(field: pa.Field[Any]) -> bytes | None:
    return (field.metadata or {}).get(FIELD_ID)


def _mapped_id(fields: Sequence[MappedField], path: Sequence[str]) -> bytes | None:
    """Return the number that the name mapping of a table gives to a field of a file without numbers."""
    found = next((each for each in fields if path[0] in each.names), None)
    if found is not None and len(path) > 1:
        return _mapped_id(found.fields, path[1:])
    return None if found is None or found.field_id is None else str(found.field_id).encode()


def _decoded_all(
    type_: PrimitiveType, data: Sequence[bytes | None], partition: Sequence[object], arrow_type: pa.DataType
) -> pa.Array[Any]:
    """Return bounds, or the values of partitions where there are none."""
    number = _NUMBERS.get(type(type_))
    if number is not None and {len(each) if each is not None else 0 for each in data} == {number.itemsize}:
        numbers: Any = pa.array(np.frombuffer(b"".join(each for each in data if each is not None), number))
        return numbers.cast(arrow_type)  # type: ignore[no-any-return]
    return pa.array([_decoded(type_, *each) for each in zip(data, partition, strict=True)], arrow_type)


def _decoded(type_: PrimitiveType, data: bytes | None, partition: object) -> Any:  # noqa: ANN401 - a value of any type
    """Return a bound, which may be of the type that the column had when the file was written."""
    if data is None:
        return partition
    if isinstance(type_, LongType) and len(data) == len(b"int4"):
        type_ = IntegerType()
    if isinstance(type_, DoubleType) and len(data) == len(b"flt4"):
        type_ = FloatType()
    return from_bytes(type_, data)
