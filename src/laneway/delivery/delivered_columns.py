"""The columns that a dataset delivers: which, of which type, and how they are read and converted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, final

import pyarrow as pa

from laneway.convert.batches import BatchConverter
from laneway.reading.categories import find_categories
from laneway.reading.origin import HIDDEN, PROVENANCE, Origin
from laneway.reading.projection import select_columns, with_provenance
from laneway.reading.selected import open_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from laneway.catalog.caching import CacheDir
    from laneway.catalog.manifest import Manifest
    from laneway.convert.columns import Output
    from laneway.convert.fill import FillNull
    from laneway.reading.categories import Categories
    from laneway.reading.rows import Rows
    from laneway.reading.selecting import RowSelection
    from laneway.storage.filesystem import Storage


@final
@dataclass(frozen=True, eq=False)
class DeliveredColumns:
    """The columns that a dataset delivers."""

    schema: pa.Schema
    """Their names and Arrow types."""
    output: Output
    """The type that users get them as."""
    converter: BatchConverter
    """Converts them."""
    provenance: bool
    """Whether they include those of `PROVENANCE`."""
    categories: Categories | None
    """The vocabularies of those that are ids; None: there are none."""
    fill_null: FillNull | None
    """What replaces nulls."""

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        storage: Storage,
        *,
        names: Sequence[str] | None,
        schema: pa.Schema | None,
        categories: Mapping[str, Sequence[Any] | None] | None,
        provenance: bool,
        output: Output,
        fill_null: FillNull | None,
        cache_dir: CacheDir,
    ) -> Self:
        """Return the columns that a user asks for; see `StatefulShardedDataset` for the arguments and errors."""
        found, vocabularies = select_columns(manifest, names, schema), None
        if categories:
            vocabularies = find_categories(categories, manifest, storage, found, cache_dir)
            found = vocabularies.as_delivered(found)
        if provenance:
            found = with_provenance(found)
        return cls(found, output, BatchConverter(found, output, fill_null), provenance, vocabularies, fill_null)

    @property
    def names_in_files(self) -> list[str]:
        """Names of those that are in the files, or in the names of their directories."""
        return [name for name in self.schema.names if not self.provenance or name not in PROVENANCE.names]

    def with_output(self, output: Output) -> Self:
        """Return these columns as another type."""
        return replace(self, output=output, converter=BatchConverter(self.schema, output, self.fill_null))

    def only(self, name: str) -> Self:
        """Return one of the columns in the files, as it is there."""
        schema = pa.schema([self.schema.field(name)])
        return type(self)(
            schema, "arrow", BatchConverter(schema, "arrow"), provenance=False, categories=None, fill_null=None
        )

    def open(
        self,
        manifest: Manifest,
        storage: Storage,
        *,
        epoch: int,
        selection: RowSelection | None,
        with_hidden: bool,
    ) -> tuple[Rows, BatchConverter]:
        """Return what reads them, and what converts them.

        Args:
            manifest: The files.
            storage: Where they are.
            epoch: The epoch that is read.
            selection: The rows; None: all.
            with_hidden: Whether the columns of `HIDDEN` come too, from which contexts are made.
        """
        converter = self.converter.with_columns(HIDDEN) if with_hidden else self.converter
        made = (PROVENANCE.names if self.provenance else []) + (HIDDEN.names if with_hidden else [])
        origin = Origin(epoch, frozenset(made)) if made else None
        rows = open_rows(manifest, storage, converter.schema, origin, selection=selection, categories=self.categories)
        return rows, converter
