"""Recognises sources that are tables, and opens their catalogs: each of their libraries is imported only when used."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from laneway.errors import LanewayError
from laneway.tables.base import Catalog
from laneway.tables.hf_saved import saved_dataset


@runtime_checkable
class ArrowDataset(Protocol):
    """A `datasets.Dataset`, which publishes no types."""

    @property
    def data(self) -> Any:  # noqa: ANN401 - a table of datasets
        """Its Arrow table."""

    @property
    def cache_files(self) -> list[dict[str, Any]]:
        """Its Arrow files."""


if TYPE_CHECKING:
    from typing import TypeAlias

    from deltalake import DeltaTable
    from lance import LanceDataset
    from pyiceberg.table import DataScan
    from pyiceberg.table import Table as IcebergTable

    Table: TypeAlias = Catalog | DeltaTable | IcebergTable | DataScan | LanceDataset | ArrowDataset


_LIBRARIES: Final[Mapping[str, str]] = {"delta": "deltalake", "iceberg": "pyiceberg", "lance": "pylance"}
"""Protocol of the URL of a table -> the library that opens it."""


def catalog_of(
    source: object, storage_options: Mapping[str, Any] | None = None, *, has_filesystem: bool = False
) -> Catalog | None:
    """Return the catalog of a source; None: it is no table.

    Args:
        source: A `Catalog`, a table of a library, or the URL of one.
        storage_options: Arguments of the filesystem of the files, for a URL that names a path.
        has_filesystem: Whether a path is one of a filesystem that the user gives.

    Raises:
        LanewayError: The library of a URL is not installed.
        DataFileError: There is no such table, or it can't be read.
        TypeError: It is of `datasets`, and no `Dataset`.
    """
    if isinstance(source, Catalog):
        return source
    if isinstance(source, (str, os.PathLike)):
        url = _of_url(source, storage_options) if isinstance(source, str) else None
        return saved_dataset(source) if url is None and not has_filesystem else url
    return _of_object(source)


def is_table_url(source: object) -> bool:
    """Return whether a source is the URL of a table."""
    return isinstance(source, str) and source.partition("://")[0] in _LIBRARIES and "://" in source


def _of_object(source: object) -> Catalog | None:
    given: Any = source
    library = type(source).__module__.partition(".")[0]
    if library == "deltalake":
        from laneway.tables.delta import DeltaCatalog  # noqa: PLC0415 - as its library

        return DeltaCatalog(given)
    if library == "datasets":
        _check_is_dataset(given)
        from laneway.tables.hf_datasets import HfCatalog  # noqa: PLC0415 - as its library

        return HfCatalog(given)
    if library == "lance":
        from laneway.tables.lance import lance_catalog  # noqa: PLC0415 - as its library

        return lance_catalog(given)
    if library == "pyiceberg":
        from laneway.tables.iceberg import iceberg_catalog  # noqa: PLC0415 - as its library

        return iceberg_catalog(given)
    return None


def _check_is_dataset(given: Any) -> None:  # noqa: ANN401 - an object of datasets
    if isinstance(given, ArrowDataset) and not isinstance(given, Mapping):
        return
    name = type(given).__name__
    if name.endswith("DatasetDict"):
        message = f"source is a {name} of the splits {', '.join(map(str, given))}: give one, such as source['train']"
        raise TypeError(message)
    message = (
        f"source is a datasets.{name}, whose rows have no places to resume at: load a Dataset, without streaming=True, "
        'or give the files, such as "hf://datasets/org/name/data/*.parquet"'
    )
    raise TypeError(message)


def _of_url(url: str, storage_options: Mapping[str, Any] | None) -> Catalog | None:
    if not is_table_url(url):
        return None
    protocol = url.partition("://")[0]
    try:
        if protocol == "delta":
            from laneway.tables.delta import open_delta  # noqa: PLC0415 - as its library

            return open_delta(url, storage_options)
        if protocol == "lance":
            from laneway.tables.lance import open_lance  # noqa: PLC0415 - as its library

            return open_lance(url, storage_options)
        from laneway.tables.iceberg import open_iceberg  # noqa: PLC0415 - as its library

        return open_iceberg(url)
    except ImportError as error:
        message = f"{protocol}:// needs {_LIBRARIES[protocol]}: pip install 'laneway[{protocol}]' ({error})"
        raise LanewayError(message) from error
