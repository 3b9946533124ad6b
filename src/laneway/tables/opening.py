"""Recognises sources that are tables, and opens their catalogs: each of their libraries is imported only when used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from laneway.errors import LanewayError
from laneway.tables.base import Catalog

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    from deltalake import DeltaTable

    Table: TypeAlias = Catalog | DeltaTable


def catalog_of(source: object, storage_options: Mapping[str, Any] | None = None) -> Catalog | None:
    """Return the catalog of a source; None: it is no table.

    Args:
        source: A `Catalog`, a table of a library, or the URL of one.
        storage_options: Arguments of the filesystem of the files, for a URL that names a path.

    Raises:
        LanewayError: The library of a URL is not installed.
        DataFileError: There is no such table, or it can't be read.
    """
    if isinstance(source, Catalog):
        return source
    if isinstance(source, str) and source.startswith("delta://"):
        return _delta(source, storage_options)
    library = type(source).__module__.partition(".")[0]
    if library == "deltalake":
        from laneway.tables.delta import DeltaCatalog  # noqa: PLC0415 - as its library

        return DeltaCatalog(source)  # type: ignore[arg-type]
    return None


def _delta(url: str, storage_options: Mapping[str, Any] | None) -> Catalog:
    try:
        from laneway.tables.delta import open_delta  # noqa: PLC0415 - as its library

        return open_delta(url, storage_options)
    except ImportError as error:
        raise _not_installed(url, "deltalake", "delta", error) from error


def _not_installed(url: str, library: str, extra: str, error: ImportError) -> LanewayError:
    message = f"{url.partition('://')[0]}:// needs {library}: pip install 'laneway[{extra}]' ({error})"
    return LanewayError(message)
