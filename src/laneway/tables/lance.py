"""Lance datasets: the fragments of a version, read as files."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, final
from urllib.parse import urlsplit

from laneway.errors import DataFileError, LanewayError
from laneway.formats.lance import fragment_version, lance_message, open_dataset, scanned_schema
from laneway.storage.object_stores import for_object_store, for_s3fs
from laneway.storage.redaction import redact
from laneway.tables.base import Catalog, TableFiles, at_version

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa
    from lance import LanceDataset, LanceFragment

PREFIX: Final = "lance://"
"""How the URL of a Lance dataset begins: `lance://path@version`, where the path may be a URL itself."""
_S3: Final = ("s3", "s3a")


@final
class LanceCatalog(Catalog):
    """A version of a Lance dataset."""

    format = "lance"

    def __init__(self, dataset: LanceDataset) -> None:
        """Take the version that was opened.

        Args:
            dataset: The dataset, at the version to read.

        Raises:
            DataFileError: It has options for a storage that others than Lance can't be given.
        """
        self._dataset = dataset
        scheme, options = urlsplit(dataset.uri).scheme, dataset.initial_storage_options
        self._is_local = scheme in {"", "file", "file-object-store"}
        if options and not self._is_local and scheme not in _S3:
            message = (
                f"{redact(dataset.uri)} was opened with storage_options, which laneway can pass on for S3 only: give "
                "the credentials to Lance by its environment variables"
            )
            raise DataFileError(message)
        self.storage_options = for_s3fs(options) if scheme in _S3 else None

    @property
    def root(self) -> str:
        """See Catalog."""
        uri = self._dataset.uri.rstrip("/")
        return os.path.abspath(uri.partition("://")[2] or uri) if self._is_local else uri  # noqa: PTH100 - a string

    @property
    def version(self) -> str:
        """See Catalog."""
        return f"version {self._dataset.version} of the Lance dataset"

    @cached_property
    def schema(self) -> pa.Schema:
        """See Catalog."""
        return scanned_schema(self._dataset)

    def files(self) -> TableFiles:
        """See Catalog: the fragments. Lance leaves out deleted rows itself, and knows all names of a column.

        Their paths are such that they are read in the order of a scan, which is not that of their numbers.
        """
        fragments = self._dataset.get_fragments()
        version = self._dataset.version
        return TableFiles(
            paths=[f"{place:08}-fragment-{each.fragment_id}" for place, each in enumerate(fragments)],
            sizes=[_size(each) for each in fragments],
            versions=[fragment_version(version, each.fragment_id) for each in fragments],
        )


def lance_catalog(dataset: object) -> LanceCatalog:
    """Return the version of a dataset that was opened.

    Raises:
        TypeError: It is none.
    """
    from lance import LanceDataset  # noqa: PLC0415 - a worker only reads, by the format

    if isinstance(dataset, LanceDataset):
        return LanceCatalog(dataset)
    message = f"source is a {type(dataset).__name__}: give a dataset of lance.dataset()"
    raise TypeError(message)


def open_lance(url: str, storage_options: Mapping[str, Any] | None) -> LanceCatalog:
    """Return the dataset of a URL such as `lance://path@version`; without a version, the latest one.

    Raises:
        DataFileError: There is no such dataset, or no such version of it.
    """
    path, version = at_version(url.removeprefix(PREFIX))
    options = for_object_store(storage_options) if storage_options else None
    try:
        return LanceCatalog(open_dataset(path, version, options))
    except LanewayError:
        raise
    except Exception as error:  # noqa: BLE001 - those of the library have no common base
        problem = "can't be opened as a Lance dataset"
        if version is not None:
            problem += f" at version {version}, which may have been cleaned up"
        message = f"{redact(path)} {problem}: {redact(lance_message(error), storage_options)}"
        raise DataFileError(message) from None


def _size(fragment: LanceFragment) -> int:
    """Return the bytes of the data files of a fragment. Those of early releases don't tell: the rows then count."""
    return sum(each.file_size_bytes or fragment.physical_rows for each in fragment.data_files())
